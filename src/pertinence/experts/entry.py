"""What is stored of an expert: the entry of a saved model's config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from ..utils.errors import PertinenceError, shown
from ..utils.validation import is_name, is_number, is_whole
from .transforms import Transform


logger = logging.get_logger(__name__)

MODEL_TYPE = "pertinence"
"""What transformers calls a model of this package."""
CONFIG = "config.json"
"""What tells the folder of a model."""


MAX_LABELS = 1_000_000
MAX_FEATURES = 1_000_000
EMBEDDED = re.compile(r"\./experts/([0-9]{1,3}|stem)")
"""Reference to an expert inside the model's own folder."""
REVISION = re.compile("[0-9a-f]{40}|sha256:[0-9a-f]{64}")
"""A commit, or a content hash."""
ATTENTION = (None, "eager", "sdpa", "flex_attention")
"""Implementations that are a part of torch; another one may be code that transformers fetches from the Hub."""
MEANINGLESS = (
    "quantization_config",
    "transformers_weights",
    "fusion_config",
    "per_layer_config",
    "experts_implementation",
    "configuration_files",
)
"""Settings of transformers that have it fetch, import or replace something, and that this model has no use for."""
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
REQUIRED_EXPERT_KEYS = {"name", "repo_id", "revision", "gmacs", "parameters", "features", "transform"}


def _check_expert(where: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise PertinenceError(f"{where} must be a mapping, got {type(entry).__name__}")
    missing = REQUIRED_EXPERT_KEYS - set(entry)
    if missing:
        raise PertinenceError(f"{where} has no {', '.join(sorted(missing))}")
    for key, (is_right, expected) in EXPERT_VALUES.items():
        value = entry.get(key)
        if not (is_right(value) or (value is None and key not in NEVER_NONE)):
            raise PertinenceError(f"{where} has {key} {shown(value)}, expected {expected}")
    Transform.from_dict(entry["transform"])
    unknown = set(entry) - EXPERT_KEYS
    if unknown:
        logger.warning(f"Expert {entry['name']!r} has unknown keys, which are ignored: {shown(sorted(unknown), 200)}.")


def _is_reference(value: Any) -> bool:
    if not isinstance(value, str) or not value.isprintable():
        return False
    if EMBEDDED.fullmatch(value) or (Path(value).is_absolute() and ".." not in Path(value).parts):
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


EXPERT_VALUES = {
    "name": (is_name, "a line of text"),
    "repo_id": (_is_reference, "a Hub id, an absolute folder, or ./experts/<i>"),
    "origin": (_is_hub_id, "a Hub id"),
    "origin_revision": (_is_revision, "a commit"),
    "revision": (_is_revision, "a commit, or sha256: and a content hash"),
    "gmacs": (lambda value: is_number(value, 0), "a number that is not negative"),
    "latency": (lambda value: is_number(value, 0), "a number that is not negative"),
    "parameters": (lambda value: is_whole(value, 0), "a count"),
    "features": (lambda value: is_whole(value, 1, MAX_FEATURES), f"a width from 1 to {MAX_FEATURES}"),
    "transform": (lambda value: isinstance(value, dict), "a mapping"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "quantization": (lambda value: value in QUANTIZATIONS, f"one of {', '.join(QUANTIZATIONS)}"),
    "label_map": (_is_label_map, "a list of indices"),
    "licence": (lambda value: isinstance(value, str) and value.isprintable(), "a line of text"),
    "select": (lambda value: isinstance(value, dict), "a mapping"),
    "report": (lambda value: isinstance(value, dict), "a mapping"),
}
"""For each key of an expert whether a value is right, and what is."""
NEVER_NONE = REQUIRED_EXPERT_KEYS - {"repo_id"}
