"""`ExpertEntry`: what the config of a saved model stores about an expert."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..routing.costs import GMACS, LATENCY
from ..utils.errors import PertinenceError, shown
from ..utils.validation import is_absolute, is_commit, is_name, is_number, is_printable, is_whole
from .exports import FLOAT32, Export
from .transform import Transform


MODEL_TYPE = "pertinence"
"""`model_type` of this package in transformers."""
CONFIG = "config.json"
"""The file that marks the folder of a model."""


MAX_LABELS = 1_000_000
MAX_FEATURES = 1_000_000
EMBEDDED = re.compile(r"\./experts/([0-9]{1,3}|stem)")
"""A reference to an expert inside the model's own folder."""
REVISION = re.compile("[0-9a-f]{40}|sha256:[0-9a-f]{64}")
"""A commit, or a content hash."""
ATTENTION = (None, "eager", "sdpa", "flex_attention")
"""Attention implementations that need only torch; any other may be code that transformers downloads from the Hub."""
MEANINGLESS = (
    "quantization_config",
    "transformers_weights",
    "fusion_config",
    "per_layer_config",
    "experts_implementation",
    "configuration_files",
)
"""Settings that make transformers download, import or replace something, and that this model does not need."""
TORCH, TORCH_INT8 = "torch", "torch-int8"
ONNX, ONNX_INT8, OPENVINO = "onnx", "onnx-int8", "openvino"
GRAPH_BACKENDS = (ONNX, OPENVINO)
"""Backends of exported graphs, which a model can be loaded with in place of torch."""
QUANTIZATIONS = {TORCH_INT8: "int8"}
"""Built-in backends that a file names by a quantization, instead of by the name of a backend."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
UNITS = (GMACS, LATENCY)
"""Units of cost that have their own key in a file; all others are in a mapping under the key `costs`."""
OPTIONAL_KEYS = ("latency", "origin", "origin_revision", "code", "costs", "cost_note", "backend", "exports")
"""Keys that are written only if they have a value."""


@dataclass(frozen=True)
class ExpertEntry:
    """What a saved model stores about one of its experts.

    Attributes:
        name: unique within the pool.
        repo_id: Hub id, absolute folder, "./experts/<i>" inside the model itself, or None for a loaded model that has
            not been saved.
        revision: commit of the Hub repository, or content hash.
        costs: cost of one image, by unit; always contains "gmacs"; "latency" is in milliseconds.
        parameters: number of parameters of its checkpoint.
        cost_note: what is uncertain about its GMACs: operations that are not counted, an input size that was assumed.
        features: width of the pooled features.
        transform: its preprocessing.
        origin, origin_revision: Hub id and commit that a copy inside the model was made from.
        code: commits of the other repositories that its code is from, by Hub id.
        dtype: the dtype that its figures were measured in, and that it is loaded in unless another one is requested.
        backend: name of the backend that runs its network.
        label_map: index of each label of the pool in the expert's own outputs; None: the same order.
        licence: licence that its card states.
        exports: its exported graphs, which are files of the model itself.
        select, report: `Figures` on the search images and on the report images, as a mapping.
        unknown: keys that this version does not know; they are kept.
    """

    name: str
    repo_id: str | None
    revision: str
    costs: Mapping[str, float]
    parameters: int
    features: int
    transform: Transform
    origin: str | None = None
    origin_revision: str | None = None
    code: Mapping[str, str] | None = None
    dtype: str | None = None
    backend: str = TORCH
    label_map: list[int] | None = None
    licence: str | None = None
    cost_note: str | None = None
    exports: tuple[Export, ...] = ()
    select: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Any, where: str = "an expert") -> ExpertEntry:
        """Read an entry of a config.

        Args:
            values: values from a file.
            where: what the entry belongs to, for messages.

        Raises:
            PertinenceError: a key is missing, or a value is invalid.
        """
        check_values(values, where)
        if values.get("quantization") and values.get("backend"):
            raise PertinenceError(f"{where} has a quantization and a backend, expected one of them")
        others = KEYS - {"transform", "costs", "quantization", "backend", "exports", *UNITS}
        units = {unit: values[unit] for unit in UNITS if values.get(unit) is not None}
        return cls(
            costs=units | (values.get("costs") or {}),
            transform=Transform.from_dict(values["transform"]),
            backend=values.get("backend") or backend_name(values.get("quantization")),
            exports=tuple(map(Export.from_dict, values.get("exports") or ())),
            unknown={key: value for key, value in values.items() if key not in KEYS},
            **{key: values[key] for key in others if key in values},
        )

    def to_dict(self) -> dict[str, Any]:
        """The entry of a config, in values of JSON."""
        values = {
            "name": self.name,
            "repo_id": self.repo_id,
            "revision": self.revision,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "label_map": self.label_map,
            "licence": self.licence,
            "select": self.select,
            "report": self.report,
            "gmacs": self.gmacs,
            "transform": self.transform.to_dict(),
            "quantization": self.quantization,
            "features": self.features,
            "latency": self.costs.get(LATENCY),
            "origin": self.origin,
            "origin_revision": self.origin_revision,
            "code": dict(self.code) if self.code else None,
            "costs": {unit: cost for unit, cost in self.costs.items() if unit not in UNITS} or None,
            "cost_note": self.cost_note,
            "backend": None if self.is_of_torch else self.backend,
            "exports": [export.to_dict() for export in self.exports] or None,
        }
        written = {key: value for key, value in values.items() if value is not None or key not in OPTIONAL_KEYS}
        return {**written, **self.unknown}

    def replace(self, **changes: Any) -> ExpertEntry:
        """A copy with other values of some attributes."""
        return replace(self, **changes)

    def copied_to(self, home: str) -> ExpertEntry:
        """The entry of a copy in `experts/<home>` of a model; that of an expert from the Hub records its origin."""
        origin = {"origin": self.repo_id, "origin_revision": self.revision} if self.is_on_hub else {}
        return self.replace(repo_id=f"./experts/{home}", **origin)

    def with_content(self, revision: str) -> ExpertEntry:
        """The entry of a copy of the same files whose content has another hash; its graphs are still graphs of it."""
        exports = tuple(replace(e, revision=revision) if e.revision == self.revision else e for e in self.exports)
        return self.replace(revision=revision, exports=exports)

    def find_export(self, precision: str = FLOAT32, file_name: str | None = None) -> Export:
        """The exported graph to run.

        Args:
            precision: "float32" or "int8".
            file_name: name of the file, like "model.onnx"; default: the first of this precision.

        Raises:
            PertinenceError: there is none, or it was exported from another revision of the checkpoint.
        """
        for export in self.exports:
            if export.precision == precision and file_name in (None, PurePosixPath(export.file).name, export.file):
                break
        else:
            known = ", ".join(f"{PurePosixPath(one.file).name} ({one.precision})" for one in self.exports) or "none"
            wanted = precision if file_name is None else f"{shown(file_name)} in {precision}"
            raise PertinenceError(f"expert {self.name!r} has no exported file {wanted}; it has: {known}")
        if export.revision != self.revision:
            raise PertinenceError(
                f"expert {self.name!r}: {export.file} was exported from revision {shown(export.revision)} of its "
                f"checkpoint, but config.json names {shown(self.revision)}: export the model again"
            )
        return export

    @property
    def gmacs(self) -> float:
        """GMACs of one image."""
        return self.costs[GMACS]

    @property
    def quantization(self) -> str | None:
        """The quantization by which a file names its backend, "int8"; None for other backends."""
        return QUANTIZATIONS.get(self.backend)

    @property
    def is_of_torch(self) -> bool:
        """Whether its backend is a built-in one of torch, which a file names only by its quantization."""
        return self.backend == TORCH or self.backend in QUANTIZATIONS

    @property
    def is_on_hub(self) -> bool:
        """Whether it is a repository on the Hub; else it is a folder, or was given loaded."""
        return is_on_hub(self.repo_id)

    @property
    def is_embedded(self) -> bool:
        """Whether its files are in the folder of the model itself."""
        return is_embedded(self.repo_id)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder, on this machine or on another one that the model was saved on."""
        return self.repo_id is not None and is_absolute(self.repo_id)

    @property
    def checkpoint_key(self) -> tuple[str | None, str]:
        """Equal for entries of the same checkpoint."""
        return self.repo_id, self.revision


def backend_name(quantization: str | None) -> str:
    """The backend of a quantization of `QUANTIZATIONS`; torch if it is None."""
    return next((name for name, kind in QUANTIZATIONS.items() if kind == quantization), TORCH)


def is_embedded(repo_id: str | None) -> bool:
    """Whether a reference points to a copy in the folder of the model itself."""
    return repo_id is not None and EMBEDDED.fullmatch(repo_id) is not None


def is_on_hub(repo_id: str | None) -> bool:
    """Whether a reference points to a repository on the Hub."""
    return repo_id is not None and not is_absolute(repo_id) and not is_embedded(repo_id)


def check_values(values: Any, where: str) -> None:
    """Raise `PertinenceError` if this cannot be the entry of an expert; `where` names it in the message."""
    if not isinstance(values, dict):
        raise PertinenceError(f"{where} must be a mapping, got {type(values).__name__}")
    missing = REQUIRED_KEYS - set(values)
    if missing:
        raise PertinenceError(f"{where} has no {', '.join(sorted(missing))}")
    for key, (is_right, expected) in EXPERT_VALUES.items():
        value = values.get(key)
        if not (is_right(value) or (value is None and key not in NEVER_NONE)):
            raise PertinenceError(f"{where} has {key} {shown(value)}, expected {expected}")


def _is_reference(value: Any) -> bool:
    if not isinstance(value, str) or not is_printable(value):
        return False
    # Windows has both separators.
    if EMBEDDED.fullmatch(value) or (is_absolute(value) and ".." not in PureWindowsPath(value).parts):
        return True
    return _is_hub_id(value)


def _is_hub_id(value: Any) -> bool:
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return True


def _is_revision(value: Any) -> bool:
    return isinstance(value, str) and REVISION.fullmatch(value) is not None


def _is_label_map(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) <= MAX_LABELS and all(is_whole(index, 0, MAX_LABELS) for index in value)
    )


def _are_costs(value: Any) -> bool:
    return isinstance(value, dict) and all(is_name(unit) and is_number(cost, 0) for unit, cost in value.items())


def _are_commits(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_hub_id(key) and is_commit(commit) for key, commit in value.items())


EXPERT_VALUES = {
    "name": (is_name, "a line of text"),
    "repo_id": (_is_reference, "a Hub id, an absolute folder, or ./experts/<i>"),
    "origin": (_is_hub_id, "a Hub id"),
    "origin_revision": (_is_revision, "a commit"),
    "code": (_are_commits, "a mapping of Hub ids to commits"),
    "revision": (_is_revision, "a commit, or sha256: and a content hash"),
    "gmacs": (lambda value: is_number(value, 0), "a number that is not negative"),
    "latency": (lambda value: is_number(value, 0), "a number that is not negative"),
    "costs": (_are_costs, "a mapping of units to numbers that are not negative"),
    "cost_note": (lambda value: isinstance(value, str) and value.isprintable(), "a line of text"),
    "parameters": (lambda value: is_whole(value, 0), "a count"),
    "features": (lambda value: is_whole(value, 1, MAX_FEATURES), f"a width from 1 to {MAX_FEATURES}"),
    "transform": (lambda value: isinstance(value, dict), "a mapping"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "quantization": (lambda value: value in QUANTIZATIONS.values(), f"one of {', '.join(QUANTIZATIONS.values())}"),
    "backend": (is_name, "a line of text"),
    "exports": (lambda value: isinstance(value, list), "a list of exported files"),
    "label_map": (_is_label_map, "a list of indices"),
    "licence": (lambda value: isinstance(value, str) and value.isprintable(), "a line of text"),
    "select": (lambda value: isinstance(value, dict), "a mapping"),
    "report": (lambda value: isinstance(value, dict), "a mapping"),
}
"""For each key of an expert a check of its value, and what the check expects."""
KEYS = set(EXPERT_VALUES)
REQUIRED_KEYS = {"name", "repo_id", "revision", "gmacs", "parameters", "features", "transform"}
NEVER_NONE = REQUIRED_KEYS - {"repo_id"}
