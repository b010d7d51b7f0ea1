"""`PertinenceConfig`: the pool, the front and the default operating point of a composed model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig
from transformers.utils import logging

from .._version import INSTALL
from ..experts.modes import PREPROCESSING_MODES
from ..routing.costs import STEM
from ..routing.front import Front, OperatingPoint
from ..routing.guarantee import Guarantee
from ..routing.metrics import Figures
from ..runtime.entry import ATTENTION, CONFIG, DTYPES, MAX_LABELS, MEANINGLESS, MODEL_TYPE, ExpertEntry
from ..utils.errors import MALFORMED, PertinenceError, explain, first_line, shown
from ..utils.hub_errors import check_place, explain_place
from ..utils.json_files import check_json, read_text
from ..utils.validation import is_whole


logger = logging.get_logger(__name__)

FORMAT_VERSION = 2
"""The newest format. Format 2 has a reference expert that is not the last one, on which older code would mislead."""
MAX_EXPERTS = 256


class PertinenceConfig(PreTrainedConfig):
    r"""Configuration of [`PertinenceForImageClassification`].

    Args:
        experts (`list[dict]`, *optional*):
            The pool by rising cost, one entry per expert, with the keys `name`, `repo_id`, `revision`, `gmacs`,
            `parameters`, `features`, `transform`, `label_map`, `licence`, `select`, `report`.
        stem (`dict`, *optional*):
            A separate router backbone that the first decision reads and that answers nothing itself, with the keys of
            an expert; `None`: the first member of each operating point is the backbone.
        front (`list[dict]`, *optional*):
            Operating points by rising cost, with the keys `name`, `recipe`, `members`, `stages`, `select`, `report`,
            and `latency` if it was measured.
        operating_point (`str`, *optional*):
            Name of the default operating point.
        preprocessing (`str`, defaults to `"exact"`):
            `"exact"`: each expert receives the pixels of its own processor; `"fast"`: torchvision on uint8 for all.
        guarantee (`dict`, *optional*):
            What `pertinence calibrate` promised for an operating point, see `Guarantee`.
        reference (`int`, *optional*):
            Pool index of the expert that losses and savings refer to; `None`: the last one.
        heads_hash (`str`, *optional*):
            Hash of the weights that were saved with this file, see `utils.tensors.hash_tensors`; others are refused.
        format_version (`int`, defaults to 1):
            Version of this format: 2 if `reference` is not the last expert.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["expert_indices", "experts_run", "gmacs", "dispatcher_logits"]

    experts: list[dict[str, Any]] | None = None
    stem: dict[str, Any] | None = None
    front: list[dict[str, Any]] | None = None
    operating_point: str | None = None
    preprocessing: str = "exact"
    guarantee: dict[str, Any] | None = None
    reference: int | None = None
    heads_hash: str | None = None
    format_version: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        # Before the parent builds label maps: a number in a file must not determine how much memory they take.
        _check_settings(type(self), kwargs)
        labels = kwargs.get("id2label") or self.id2label
        _check_labels(labels, kwargs.get("num_labels"))
        if self.dtype is not None and str(self.dtype).removeprefix("torch.") not in DTYPES:
            raise PertinenceError(
                f"config.json has dtype {shown(self.dtype)}, which is not one of {', '.join(DTYPES)}"
            )
        if self.experts is not None:
            self.check()
            for entry in self.expert_entries:
                if labels and entry.label_map is not None and len(entry.label_map) != len(labels):
                    raise PertinenceError(f"the label_map of expert {entry.name!r} does not have {len(labels)} labels")
        super().__post_init__(**kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        try:
            check_json(read_text(Path(json_file)))
        except PertinenceError as error:
            raise PertinenceError(f"{json_file} is too large: {error}") from error
        values = super()._dict_from_json_file(json_file)
        if isinstance(values, dict):
            _check_settings(cls, values)  # before transformers can replace them by another file's
        return values

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> PertinenceConfig:
        """Load the config, as in transformers.

        Raises:
            PertinenceError: the file is not the config of a pertinence model.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except MALFORMED as error:
            if isinstance(error, (PertinenceError, HFValidationError)):
                raise
            raise PertinenceError(
                f"the config.json of {pretrained_model_name_or_path} is damaged ({explain(error)}): fetch it again"
            ) from error

    @property
    def expert_entries(self) -> list[ExpertEntry]:
        """The entries of the experts, by rising cost."""
        return [
            ExpertEntry.from_dict(values, f"expert {index} of config.json")
            for index, values in enumerate(self.experts or [])
        ]

    @property
    def stem_entry(self) -> ExpertEntry | None:
        """The entry of the separate stem; None if there is none."""
        return None if self.stem is None else ExpertEntry.from_dict(self.stem, "the stem of config.json")

    @property
    def entries(self) -> list[ExpertEntry]:
        """The entries of the experts, and last that of the separate stem if there is one."""
        return [*self.expert_entries, *filter(None, [self.stem_entry])]

    def set_entries(self, entries: Sequence[ExpertEntry]) -> None:
        """Replace the entries of the experts, and last that of the separate stem if there is one."""
        values = [entry.to_dict() for entry in entries]
        count = len(self.experts or [])
        self.experts, self.stem = values[:count], values[count] if self.stem is not None else None

    @property
    def reference_index(self) -> int:
        """Pool index of the expert that losses and savings refer to."""
        return len(self.experts or []) - 1 if self.reference is None else self.reference

    @property
    def expert_names(self) -> list[str]:
        return [values["name"] for values in self.experts or []]

    @property
    def feature_sizes(self) -> dict[int, int]:
        """Width of the pooled features of each expert by pool index, and of a separate stem by `STEM`."""
        values = dict(enumerate(self.experts or [])) | ({STEM: self.stem} if self.stem else {})
        return {index: one["features"] for index, one in values.items()}

    def build_front(self) -> Front:
        """The front as an object; raises `PertinenceError` if an entry is malformed."""
        points = [OperatingPoint.from_dict(values) for values in self.front or []]
        reference = (self.experts or [{}])[self.reference_index].get("select") if self.experts else None
        cost = Figures.from_dict(reference).cost if reference else None
        return Front(points, self.expert_names, self.operating_point, cost)

    def build_guarantee(self) -> Guarantee | None:
        """The guarantee as an object; None if there is none. Raises `PertinenceError` if it is malformed."""
        return None if self.guarantee is None else Guarantee.from_dict(self.guarantee)

    def check(self) -> None:
        """Raise `PertinenceError` if this cannot be the config of a model."""
        count = len(self.experts or [])
        if not 1 <= count <= MAX_EXPERTS:
            raise PertinenceError(f"`experts` has {count} entries, expected 1 to {MAX_EXPERTS}")
        if self.preprocessing not in PREPROCESSING_MODES:
            raise PertinenceError(
                f"preprocessing={shown(self.preprocessing)} is not one of {', '.join(map(repr, PREPROCESSING_MODES))}"
            )
        if not isinstance(self.format_version, int):
            raise PertinenceError(f"format_version must be a number, got {shown(self.format_version)}")
        if self.format_version > FORMAT_VERSION:
            logger.warning(
                f"This model has format version {self.format_version}, newer than {FORMAT_VERSION}, which this "
                f"version of pertinence knows: install a newer one ({INSTALL})."
            )
        if self.reference is not None and not is_whole(self.reference, 0, count - 1):
            raise PertinenceError(
                f"reference={shown(self.reference)} is not the index of an expert, expected 0 to {count - 1}"
            )
        experts, stem = self.expert_entries, self.stem_entry
        for index, entry in enumerate(experts):
            for figures in filter(None, (entry.select, entry.report)):
                _check_figures(f"expert {index} of config.json", figures, count)
        entries = [*experts, *filter(None, [stem])]
        for entry in entries:
            if entry.unknown:
                logger.warning(
                    f"Expert {entry.name!r} has unknown keys, which are ignored: {shown(sorted(entry.unknown), 200)}."
                )
        names = [entry.name for entry in entries]
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


def _check_settings(cls: type[PertinenceConfig], settings: dict[str, Any]) -> None:
    """Refuse settings that make transformers run or load something, and keys that would replace a method."""
    if settings.get("attn_implementation") not in ATTENTION:
        raise PertinenceError(
            f"config.json asks for the attention {shown(settings['attn_implementation'])}, which may be code from "
            f"the Hub; known: {', '.join(filter(None, ATTENTION))}"
        )
    if not isinstance(settings.get("model_type", ""), str):
        raise PertinenceError(f"config.json has the model_type {shown(settings['model_type'])}, expected text")
    for key in MEANINGLESS:
        if settings.get(key) is not None:
            raise PertinenceError(f"config.json has {key}, which a pertinence model has no use for: take it out")
    for key in settings:
        if callable(getattr(cls, key, None)):
            raise PertinenceError(f"config.json has the key {shown(key)}, which is the name of a method: take it out")


def _check_labels(labels: Any, count: Any) -> None:
    if count is not None and not is_whole(count, 0, MAX_LABELS):
        raise PertinenceError(f"config.json claims {shown(count)} labels, more than {MAX_LABELS} labels")
    if labels is None:
        return
    if not isinstance(labels, dict) or len(labels) > MAX_LABELS:
        raise PertinenceError(f"id2label must map up to {MAX_LABELS} indices to labels, got {type(labels).__name__}")
    if {str(index) for index in labels} != set(map(str, range(len(labels)))):
        raise PertinenceError(f"id2label must have the indices 0 to {len(labels) - 1}")
    if not all(isinstance(label, (str, int)) for label in labels.values()):
        raise PertinenceError("id2label must map indices to text")


def _check_figures(where: str, values: dict[str, Any], num_experts: int) -> None:
    try:
        figures = Figures.from_dict(values)
    except MALFORMED as error:
        raise PertinenceError(f"{where}: its figures are malformed ({explain(error)})") from error
    figures.check(where, num_experts)


def open_config(
    model: str | os.PathLike[str], token: str | bool | None = None, revision: str | None = None
) -> PertinenceConfig:
    """Load the config of a model from a folder or the Hub, without downloading anything else.

    Raises:
        PertinenceError: it does not exist or may not be read, or it is that of another kind of model.
    """
    check_place(str(model))
    if Path(model).is_dir() and not (Path(model) / CONFIG).is_file():
        raise PertinenceError(
            f"the folder {model} holds no model: it has no {CONFIG}; give the --output-dir of a finished search, or a "
            "Hub id"
        )
    try:
        config = PertinenceConfig.from_pretrained(model, token=token, revision=revision)
    except OSError as error:
        reason = None if Path(model).is_dir() else explain_place(str(model), revision, error)
        raise PertinenceError(reason or first_line(error)) from error
    if not config.experts:
        raise PertinenceError(f"{model} is not a pertinence model: its config.json lists no experts")
    return config
