"""`PertinenceConfig`: the pool, the front and the default operating point of a composed model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from .errors import PertinenceError
from .front import Front, OperatingPoint


logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
MAX_EXPERTS = 256
MAX_LABELS = 1_000_000
PREPROCESSING_MODES = ("exact", "fast")
EXPERT_KEYS = {
    "name",  # unique within the pool
    # Hub id, absolute folder, "./experts/<i>" inside this model, or None for a model that is in no file yet
    "repo_id",
    "revision",  # commit of the Hub repository, or content hash
    "gmacs",  # cost of one image
    "parameters",
    "features",  # width of the pooled features
    "transform",  # see `preprocessing.Transform`
    "label_map",  # index of each label of the pool in the expert's own outputs, or None: the same order
    "licence",
    "select",
    "report",
}
REQUIRED_EXPERT_KEYS = EXPERT_KEYS - {"label_map", "licence", "select", "report"}


class PertinenceConfig(PreTrainedConfig):
    r"""Configuration of [`PertinenceForImageClassification`].

    Args:
        experts (`list[dict]`, *optional*):
            The pool by rising cost, one entry per expert, with the keys `name`, `repo_id`, `revision`, `gmacs`,
            `parameters`, `features`, `transform`, `label_map`, `licence`, `select`, `report`.
        stem (`dict`, *optional*):
            A separate network for the first decision; `None`: the first member of each operating point.
        front (`list[dict]`, *optional*):
            Operating points by rising cost, with the keys `name`, `recipe`, `members`, `stages`, `select`, `report`.
        operating_point (`str`, *optional*):
            Name of the operating point that is used where a call names none.
        preprocessing (`str`, defaults to `"exact"`):
            `"exact"`: each expert sees the pixels that its own processor makes; `"fast"`: torchvision on uint8 for
            all.
        format_version (`int`, defaults to 1):
            Version of this format.
    """

    model_type = "pertinence"
    keys_to_ignore_at_inference = ["expert_indices", "experts_run", "gmacs", "dispatcher_logits"]

    experts: list[dict[str, Any]] | None = None
    stem: dict[str, Any] | None = None
    front: list[dict[str, Any]] | None = None
    operating_point: str | None = None
    preprocessing: str = "exact"
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        if self.experts is not None:
            self._check(num_labels=kwargs.get("num_labels"), labels=kwargs.get("id2label") or self.id2label)
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; raises `PertinenceError` for the config of another kind of model."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if not config.experts:
            raise PertinenceError(
                f"{pretrained_model_name_or_path} is not a pertinence model: its config.json lists no experts"
            )
        return loaded

    @property
    def expert_names(self) -> list[str]:
        return [entry["name"] for entry in self.experts or []]

    def build_front(self) -> Front:
        """The front as objects; raises `PertinenceError` where an entry is malformed."""
        return Front([OperatingPoint.from_dict(values) for values in self.front or []], self.expert_names)

    def _check(self, num_labels, labels) -> None:
        # Before the parent builds label maps: a number from a file must not decide how much memory is taken.
        if (num_labels or 0) > MAX_LABELS or len(labels or ()) > MAX_LABELS:
            raise PertinenceError(f"config.json claims more than {MAX_LABELS} labels")
        if not 1 <= len(self.experts) <= MAX_EXPERTS:
            raise PertinenceError(f"`experts` has {len(self.experts)} entries, expected 1 to {MAX_EXPERTS}")
        if self.preprocessing not in PREPROCESSING_MODES:
            raise PertinenceError(
                f"preprocessing={self.preprocessing!r} is not one of {', '.join(map(repr, PREPROCESSING_MODES))}"
            )
        if self.stem is not None:
            raise PertinenceError("this model has a separate stem, which this version of pertinence cannot run yet")
        if self.format_version > FORMAT_VERSION:
            logger.warning(
                f"This model has format version {self.format_version}, newer than {FORMAT_VERSION}, which this "
                f"version of "
                "pertinence knows: upgrade with `pip install -U pertinence`."
            )
        for index, entry in enumerate(self.experts):
            missing = REQUIRED_EXPERT_KEYS - set(entry)
            if missing:
                raise PertinenceError(f"expert {index} of config.json has no {', '.join(sorted(missing))}")
            unknown = set(entry) - EXPERT_KEYS
            if unknown:
                logger.warning(f"Expert {entry['name']!r} has unknown keys, which are ignored: {sorted(unknown)}.")
        names = self.expert_names
        if len(set(names)) != len(names):
            raise PertinenceError(f"experts need different names, got {names}")
        front = self.build_front()
        if self.operating_point is not None:
            front.find(self.operating_point)
