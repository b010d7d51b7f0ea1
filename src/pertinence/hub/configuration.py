"""`PertinenceConfig`: the pool, the front and the default operating point of a composed model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig

from ..routing.front import Front
from ..routing.guarantee import Guarantee
from ..routing.metrics import Figures
from ..routing.promises import Promises
from ..routing.unlike import IGNORE, UnlikeRule
from ..runtime.config import (
    ModelConfig,
    build_front,
    check_label_maps,
    check_labels,
    feature_sizes,
    parse_experts,
    parse_stem,
    reference_figures,
)
from ..runtime.entry import ATTENTION, CONFIG, DTYPES, MEANINGLESS, MODEL_TYPE, ExpertEntry
from ..utils.errors import MALFORMED, PertinenceError, explain, first_line, shown
from ..utils.hub_errors import check_place, explain_place
from ..utils.json_files import check_json, read_text


_CHECKED = (
    "experts",
    "stem",
    "front",
    "operating_point",
    "preprocessing",
    "ood_action",
    "ood_false_alarms",
    "guarantee",
    "promises",
    "max_error_rate",
    "reference",
    "reference_temperature",
    "heads_hash",
    "format_version",
)
"""What `ModelConfig` checks; transformers makes objects of the labels only later."""


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
        ood_action (`str`, defaults to `"ignore"`):
            What is done with an image that is unlike the search images (out of distribution): `"ignore"`: nothing;
            `"reference"`: the reference expert answers it; `"abstain"`: it is not answered.
        ood_false_alarms (`float`, defaults to 0.01):
            Share of images like the search images for which that may be done.
        guarantee (`dict`, *optional*):
            What `pertinence calibrate` promised for an operating point, see `Guarantee`.
        promises (`dict`, *optional*):
            What `pertinence calibrate` promised of single answers, see `Promises`.
        max_error_rate (`float`, *optional*):
            The promised error rate that images are answered at; `None`: all are answered.
        reference (`int`, *optional*):
            Pool index of the expert that losses and savings refer to; `None`: the last one.
        reference_temperature (`float`, *optional*):
            Temperature of that expert, fitted to the search images, whose confidence an evaluation compares with.
        heads_hash (`str`, *optional*):
            Hash of the weights that were saved with this file, see `utils.tensors.hash_tensors`; others are refused.
        format_version (`int`, defaults to 1):
            Version of this format: 2 if `reference` is not the last expert.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = [
        "expert_indices",
        "experts_run",
        "gmacs",
        "dispatcher_logits",
        "confidence",
        "abstained",
        "prediction_sets",
        "ood_p_value",
    ]

    experts: list[dict[str, Any]] | None = None
    stem: dict[str, Any] | None = None
    front: list[dict[str, Any]] | None = None
    operating_point: str | None = None
    preprocessing: str = "exact"
    ood_action: str = IGNORE
    ood_false_alarms: float = 0.01
    guarantee: dict[str, Any] | None = None
    promises: dict[str, Any] | None = None
    max_error_rate: float | None = None
    reference: int | None = None
    reference_temperature: float | None = None
    heads_hash: str | None = None
    format_version: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        # Before the parent builds label maps: a number in a file must not determine how much memory they take.
        _check_settings(type(self), kwargs)
        labels = kwargs.get("id2label") or self.id2label
        check_labels(labels, kwargs.get("num_labels"))
        if self.dtype is not None and str(self.dtype).removeprefix("torch.") not in DTYPES:
            raise PertinenceError(
                f"config.json has dtype {shown(self.dtype)}, which is not one of {', '.join(DTYPES)}"
            )
        if self.experts is not None:
            self.check()
            check_label_maps(self.expert_entries, labels)
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
        return list(parse_experts(self.experts))

    @property
    def stem_entry(self) -> ExpertEntry | None:
        """The entry of the separate stem; None if there is none."""
        return parse_stem(self.stem)

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
    def reference_figures(self) -> Figures | None:
        """Figures of the reference expert on the search images; None: not measured."""
        return reference_figures(self.expert_entries, self.reference_index)

    @property
    def unlike_rule(self) -> UnlikeRule:
        """What is done with images that are unlike the search images."""
        return UnlikeRule(self.ood_action, self.ood_false_alarms, self.reference_index)

    @property
    def expert_names(self) -> list[str]:
        return [values["name"] for values in self.experts or []]

    @property
    def feature_sizes(self) -> dict[int, int]:
        """Width of the pooled features of each expert by pool index, and of a separate stem by `STEM`."""
        return feature_sizes(self.expert_entries, self.stem_entry)

    def build_front(self) -> Front:
        """The front as an object; raises `PertinenceError` if an entry is malformed."""
        return build_front(self.front, self.expert_entries, self.operating_point, self.reference_index)

    def build_guarantee(self) -> Guarantee | None:
        """The guarantee as an object; None if there is none. Raises `PertinenceError` if it is malformed."""
        return None if self.guarantee is None else Guarantee.from_dict(self.guarantee)

    def build_promises(self) -> Promises | None:
        """The promises of single answers as an object; None if there are none. Raises `PertinenceError` likewise."""
        return None if self.promises is None else Promises.from_dict(self.promises)

    def check(self) -> None:
        """Raise `PertinenceError` if this cannot be the config of a model."""
        ModelConfig.parse({name: getattr(self, name) for name in _CHECKED})


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
