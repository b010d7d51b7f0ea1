"""`PertinenceConfig`: the pool, the front and the default operating point of a composed model."""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from .errors import PertinenceError
from .front import STEM, Front, OperatingPoint
from .guarantee import Guarantee


logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
MAX_EXPERTS = 256
MAX_LABELS = 1_000_000
PREPROCESSING_MODES = ("exact", "fast")
QUANTIZATIONS = ("int8",)
DTYPES = ("float32", "bfloat16", "float16", "float64")
EXPERT_KEYS = {
    "name",  # unique within the pool
    # Hub id, absolute folder, "./experts/<i>" inside this model, or None for a model that is in no file yet
    "repo_id",
    "origin",  # Hub id that a copy inside this model was made from
    "origin_revision",  # and its commit there
    "revision",  # commit of the Hub repository, or content hash
    "gmacs",  # cost of one image
    "latency",  # measured milliseconds of one image, where that was the cost of the search
    "parameters",
    "features",  # width of the pooled features
    "dtype",  # that its figures were measured in; it is loaded in it unless another is asked for
    "transform",  # see `preprocessing.Transform`
    "quantization",  # "int8" where its linear layers compute in 8 bits, or None
    "label_map",  # index of each label of the pool in the expert's own outputs, or None: the same order
    "licence",
    "select",
    "report",
}
EXPERT_TYPES = {
    "name": str,
    "repo_id": str | None,
    "origin": str | None,
    "origin_revision": str | None,
    "revision": str,
    "gmacs": int | float,
    "parameters": int,
    "features": int,
    "transform": dict,
    "dtype": str | None,
    "quantization": str | None,
    "label_map": list | None,
}
REQUIRED_EXPERT_KEYS = EXPERT_KEYS - {
    "dtype",
    "latency",
    "quantization",
    "label_map",
    "licence",
    "origin",
    "origin_revision",
    "select",
    "report",
}


class PertinenceConfig(PreTrainedConfig):
    r"""Configuration of [`PertinenceForImageClassification`].

    Args:
        experts (`list[dict]`, *optional*):
            The pool by rising cost, one entry per expert, with the keys `name`, `repo_id`, `revision`, `gmacs`,
            `parameters`, `features`, `transform`, `label_map`, `licence`, `select`, `report`.
        stem (`dict`, *optional*):
            A separate network that the first decision looks at and that answers nothing itself, with the keys of an
            expert; `None`: the first member of each operating point.
        front (`list[dict]`, *optional*):
            Operating points by rising cost, with the keys `name`, `recipe`, `members`, `stages`, `select`, `report`,
            and `latency` where it was measured.
        operating_point (`str`, *optional*):
            Name of the operating point that is used where a call names none.
        preprocessing (`str`, defaults to `"exact"`):
            `"exact"`: each expert sees the pixels of its own processor; `"fast"`: torchvision on uint8 for all.
        guarantee (`dict`, *optional*):
            What `pertinence calibrate` promised of an operating point, see `Guarantee`.
        heads_hash (`str`, *optional*):
            Of the weights that were saved with this file, see `files.hash_tensors`: others are refused.
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
    guarantee: dict[str, Any] | None = None
    heads_hash: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        # Before the parent builds label maps: a number from a file must not decide how much memory is taken.
        labels = kwargs.get("id2label") or self.id2label or ()
        if (kwargs.get("num_labels") or 0) > MAX_LABELS or len(labels) > MAX_LABELS:
            raise PertinenceError(f"config.json claims more than {MAX_LABELS} labels")
        if self.experts is not None:
            self.check()
            for entry in self.experts:
                if labels and entry.get("label_map") is not None and len(entry["label_map"]) != len(labels):
                    raise PertinenceError(
                        f"the label_map of expert {entry['name']!r} does not have {len(labels)} labels"
                    )
        super().__post_init__(**kwargs)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What is known of every expert, and last of the stem where there is one."""
        return [*(self.experts or []), *filter(None, [self.stem])]

    @property
    def expert_names(self) -> list[str]:
        return [entry["name"] for entry in self.experts or []]

    def build_front(self) -> Front:
        """The front as objects; raises `PertinenceError` where an entry is malformed."""
        return Front([OperatingPoint.from_dict(values) for values in self.front or []], self.expert_names)

    def build_guarantee(self) -> Guarantee | None:
        """The guarantee as an object, if there is one; raises `PertinenceError` where it is malformed."""
        return None if self.guarantee is None else Guarantee.from_dict(self.guarantee)

    def check(self) -> None:
        """Raise `PertinenceError` where this cannot be the config of a model."""
        if not 1 <= len(self.experts) <= MAX_EXPERTS:
            raise PertinenceError(f"`experts` has {len(self.experts)} entries, expected 1 to {MAX_EXPERTS}")
        if self.preprocessing not in PREPROCESSING_MODES:
            raise PertinenceError(
                f"preprocessing={self.preprocessing!r} is not one of {', '.join(map(repr, PREPROCESSING_MODES))}"
            )
        if not isinstance(self.format_version, int):
            raise PertinenceError(f"format_version must be a number, got {self.format_version!r}")
        if self.format_version > FORMAT_VERSION:
            logger.warning(
                f"This model has format version {self.format_version}, newer than {FORMAT_VERSION}, which this "
                "version of pertinence knows: upgrade with `pip install -U pertinence`."
            )
        for index, entry in enumerate(self.experts):
            _check_expert(f"expert {index} of config.json", entry)
        names = self.expert_names
        if self.stem is not None:
            _check_expert("the stem of config.json", self.stem)
            names = [*names, self.stem["name"]]
        if len(set(names)) != len(names):
            raise PertinenceError(f"experts need different names, got {names}")
        front = self.build_front()
        if self.stem is None and any(stage.after == STEM for point in front for stage in point.stages):
            raise PertinenceError("an operating point starts at a stem, but config.json has no `stem`")
        if self.operating_point is not None:
            front.find(self.operating_point)
        guarantee = self.build_guarantee()
        for tested in guarantee.tested if guarantee else ():
            front.find(tested.operating_point)


def _check_expert(where: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise PertinenceError(f"{where} must be a mapping, got {type(entry).__name__}")
    missing = REQUIRED_EXPERT_KEYS - set(entry)
    if missing:
        raise PertinenceError(f"{where} has no {', '.join(sorted(missing))}")
    for key, kind in EXPERT_TYPES.items():
        if not isinstance(entry.get(key), kind):
            raise PertinenceError(f"{where} has {key} {entry.get(key)!r}, which is not of its type")
    if not (math.isfinite(entry["gmacs"]) and entry["gmacs"] >= 0 and entry["features"] >= 1):
        raise PertinenceError(f"{where} has impossible gmacs {entry['gmacs']} or features {entry['features']}")
    if entry.get("dtype") not in (None, *DTYPES):
        raise PertinenceError(f"{where} has dtype {entry['dtype']!r}, which is not one of {', '.join(DTYPES)}")
    if entry.get("quantization") not in (None, *QUANTIZATIONS):
        raise PertinenceError(
            f"{where} has quantization {entry['quantization']!r}, which is not one of {', '.join(QUANTIZATIONS)}"
        )
    unknown = set(entry) - EXPERT_KEYS
    if unknown:
        logger.warning(f"Expert {entry['name']!r} has unknown keys, which are ignored: {sorted(unknown)}.")
