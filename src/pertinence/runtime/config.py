"""What the `config.json` of a saved model says, checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import INSTALL
from ..routing.costs import GMACS, STEM, PoolCosts
from ..routing.front import Front, OperatingPoint
from ..routing.guarantee import Guarantee
from ..routing.metrics import Figures
from ..routing.promises import Promises, find_error_promise
from ..routing.unlike import IGNORE, UnlikeRule
from ..utils.errors import MALFORMED, PertinenceError, explain, shown
from ..utils.json_files import parse_json, read_text
from ..utils.validation import is_number, is_whole
from .entry import MAX_LABELS, MODEL_TYPE, ExpertEntry
from .transform import EXACT, PREPROCESSING_MODES


logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""The newest format. Format 2 has a reference expert that is not the last one, on which older code would mislead."""
MAX_EXPERTS = 256


@dataclass(frozen=True)
class ModelConfig:
    """The config of a saved model.

    Attributes:
        experts: entries of the pool by rising cost.
        front: operating points by rising cost.
        operating_point: name of the default point; None: the last one.
        stem: entry of the separate stem.
        reference: pool index of the expert that losses and savings refer to.
        preprocessing: "exact" or "fast".
        guarantee: what was promised for a point.
        promises: what was promised of single answers.
        max_error_rate: the promised error rate that images are answered at; None: all are answered.
        labels: names of the labels, by index; empty if the file has none.
        heads_hash: hash of the heads.
        unlike_rule: what is done with images that are unlike the search images.
    """

    experts: tuple[ExpertEntry, ...]
    front: Front
    operating_point: str | None
    stem: ExpertEntry | None
    reference: int
    preprocessing: str
    guarantee: Guarantee | None
    unlike_rule: UnlikeRule
    labels: tuple[str, ...] = ()
    heads_hash: str | None = None
    promises: Promises | None = None
    max_error_rate: float | None = None

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """Read a `config.json`; raises `PertinenceError` if it is not that of a model."""
        try:
            values = parse_json(read_text(path))
        except FileNotFoundError as error:
            raise PertinenceError(f"{path.parent} holds no model: it has no {path.name}") from error
        except (OSError, RecursionError, ValueError) as error:
            reason = str(error) if isinstance(error, PertinenceError) else explain(error)
            raise PertinenceError(f"{path} cannot be read as a config ({reason}): fetch it again") from error
        if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE or not values.get("experts"):
            raise PertinenceError(f"{path.parent} is not a pertinence model: its {path.name} lists no experts")
        try:
            return cls.parse(values)
        except MALFORMED as error:
            reason = str(error) if isinstance(error, PertinenceError) else f"it is damaged ({explain(error)})"
            raise PertinenceError(f"{path}: {reason}") from error

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Check the values of a file; raises `PertinenceError` if they cannot be the config of a model."""
        listed = values.get("experts")
        if listed is not None and not isinstance(listed, list):
            raise PertinenceError(f"`experts` must be a list, got {type(listed).__name__}")
        count = len(listed or [])
        if not 1 <= count <= MAX_EXPERTS:
            raise PertinenceError(f"`experts` has {count} entries, expected 1 to {MAX_EXPERTS}")
        preprocessing, reference = values.get("preprocessing", EXACT), values.get("reference")
        if preprocessing not in PREPROCESSING_MODES:
            raise PertinenceError(
                f"preprocessing={shown(preprocessing)} is not one of {', '.join(map(repr, PREPROCESSING_MODES))}"
            )
        _check_version(values.get("format_version", 1))
        if reference is not None and not is_whole(reference, 0, count - 1):
            raise PertinenceError(
                f"reference={shown(reference)} is not the index of an expert, expected 0 to {count - 1}"
            )
        temperature = values.get("reference_temperature")
        if temperature is not None and not (is_number(temperature, 0) and temperature > 0):
            raise PertinenceError(f"reference_temperature={shown(temperature)} is none, expected a number above 0")
        experts, stem = parse_experts(listed), parse_stem(values.get("stem"))
        _check_experts(experts, stem)
        labels = values.get("id2label")
        check_labels(labels)
        check_label_maps(experts, labels)
        reference = count - 1 if reference is None else reference
        front = build_front(values.get("front"), experts, values.get("operating_point"), reference)
        if stem is None and any(stage.after == STEM for point in front for stage in point.stages):
            raise PertinenceError("an operating point starts at a stem, but config.json has no `stem`")
        if values.get("operating_point") is not None:
            front.find(values["operating_point"])
        guarantee = None if values.get("guarantee") is None else Guarantee.from_dict(values["guarantee"])
        for tested in guarantee.tested if guarantee else ():
            front.find(tested.operating_point)
        promises = None if values.get("promises") is None else Promises.from_dict(values["promises"])
        if promises is not None:
            promises.check(front)
        rate = values.get("max_error_rate")
        if rate is not None:
            find_error_promise(promises, front.find(values.get("operating_point")).name, rate)
        heads_hash = values.get("heads_hash")
        if not (heads_hash is None or isinstance(heads_hash, str)):
            raise PertinenceError(f"heads_hash must be text, got {shown(heads_hash)}")
        return cls(
            experts,
            front,
            values.get("operating_point"),
            stem,
            reference,
            preprocessing,
            guarantee,
            UnlikeRule(values.get("ood_action", IGNORE), values.get("ood_false_alarms", 0.01), reference),
            tuple(str(label) for _, label in sorted((int(index), label) for index, label in (labels or {}).items())),
            heads_hash,
            promises,
            rate,
        )

    @property
    def feature_sizes(self) -> dict[int, int]:
        """Width of the pooled features of each expert by pool index, and of a separate stem by `STEM`."""
        return feature_sizes(self.experts, self.stem)

    @property
    def reference_figures(self) -> Figures | None:
        """Figures of the reference expert on the search images; None: not measured."""
        return reference_figures(self.experts, self.reference)

    @property
    def costs(self) -> PoolCosts:
        """GMACs of the experts, and of a separate stem."""
        return pool_costs(self.experts, self.stem)


def parse_experts(listed: Sequence[Any] | None) -> tuple[ExpertEntry, ...]:
    """The entries of the experts; raises `PertinenceError` if one is malformed."""
    return tuple(
        ExpertEntry.from_dict(values, f"expert {index} of config.json") for index, values in enumerate(listed or [])
    )


def parse_stem(values: Any) -> ExpertEntry | None:
    """The entry of the separate stem; None if there is none."""
    return None if values is None else ExpertEntry.from_dict(values, "the stem of config.json")


def build_front(
    points: Sequence[Any] | None, experts: Sequence[ExpertEntry], operating_point: str | None, reference: int
) -> Front:
    """The front of a config; raises `PertinenceError` if an entry is malformed."""
    if not isinstance(points, (list, tuple, type(None))):
        raise PertinenceError(f"`front` must be a list, got {type(points).__name__}")
    figures = reference_figures(experts, reference)
    return Front(
        [OperatingPoint.from_dict(values) for values in points or []],
        [entry.name for entry in experts],
        operating_point,
        figures.cost if figures else None,
    )


def reference_figures(experts: Sequence[ExpertEntry], reference: int) -> Figures | None:
    """Figures of the reference expert on the search images; None: not measured."""
    values = experts[reference].select if experts else None
    return Figures.from_dict(values) if values else None


def feature_sizes(experts: Sequence[ExpertEntry], stem: ExpertEntry | None) -> dict[int, int]:
    """Width of the pooled features of each expert by pool index, and of a separate stem by `STEM`."""
    entries = dict(enumerate(experts)) | ({STEM: stem} if stem else {})
    return {index: entry.features for index, entry in entries.items()}


def pool_costs(experts: Sequence[ExpertEntry], stem: ExpertEntry | None) -> PoolCosts:
    """GMACs of the experts, and of a separate stem."""
    return PoolCosts({GMACS: tuple(entry.gmacs for entry in experts)}, {GMACS: stem.gmacs} if stem else {})


def check_labels(labels: Any, count: Any = None) -> None:
    """Raise `PertinenceError` unless an `id2label` and a number of labels can be those of a model."""
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


def check_label_maps(experts: Sequence[ExpertEntry], labels: Any) -> None:
    """Raise `PertinenceError` unless the label map of every expert has each label of `id2label`."""
    for entry in experts:
        if labels and entry.label_map is not None and len(entry.label_map) != len(labels):
            raise PertinenceError(f"the label_map of expert {entry.name!r} does not have {len(labels)} labels")


def _check_version(version: Any) -> None:
    if not isinstance(version, int):
        raise PertinenceError(f"format_version must be a number, got {shown(version)}")
    if version > FORMAT_VERSION:
        logger.warning(
            f"This model has format version {version}, newer than {FORMAT_VERSION}, which this version of pertinence "
            f"knows: install a newer one ({INSTALL})."
        )


def _check_experts(experts: Sequence[ExpertEntry], stem: ExpertEntry | None) -> None:
    for index, entry in enumerate(experts):
        for figures in filter(None, (entry.select, entry.report)):
            _check_figures(f"expert {index} of config.json", figures, len(experts))
    entries = [*experts, *filter(None, [stem])]
    for entry in entries:
        if entry.unknown:
            logger.warning(
                f"Expert {entry.name!r} has unknown keys, which are ignored: {shown(sorted(entry.unknown), 200)}."
            )
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise PertinenceError(f"experts need different names, got {names}")


def _check_figures(where: str, values: dict[str, Any], num_experts: int) -> None:
    try:
        figures = Figures.from_dict(values)
    except MALFORMED as error:
        raise PertinenceError(f"{where}: its figures are malformed ({explain(error)})") from error
    figures.check(where, num_experts)
