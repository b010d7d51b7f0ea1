"""What lies in the folder of a saved model, and of a search: names of files, and whether they belong together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.seen import SEEN
from ..experts.entry import CONFIG
from ..utils.errors import PertinenceError
from ..utils.io import replaced
from ..utils.parsing import parse_json, read_mapping


RECORD = "search_result.json"
"""What tells the folder of a result."""
ROUTING_REFERENCE = "routing_reference.safetensors"
WEIGHT_PATTERNS = (
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    ROUTING_REFERENCE,
)
"""Patterns of what holds the weights of a model, and what belongs to them: of one that is saved over another all of
the other's goes."""
STATE = "search_state"
"""Folder, within that of the result, of a search that has not ended."""
SETTINGS = "search.yaml"
BASELINES = "baselines.safetensors"
FRONT_FIGURE, SHARES_FIGURE, CONVERGENCE_FIGURE, EXAMPLES_FIGURE = (
    "front.png",
    "shares.png",
    "convergence.png",
    "examples.png",
)
SEARCH_DATA = (RECORD, BASELINES, SEEN)
"""What is read of a search later, and must be of the model that it lies beside."""
SEARCH_FILES = (*SEARCH_DATA, SETTINGS, FRONT_FIGURE, SHARES_FIGURE, CONVERGENCE_FIGURE, EXAMPLES_FIGURE)
"""What a search leaves beside its model."""


def update_config(path: Path, values: Mapping[str, Any]) -> None:
    """Replace some values of a model's config.json."""
    values = json.loads(path.read_text()) | dict(values)
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def find_table_record(model: str | os.PathLike) -> Path | None:
    """The record in the folder of a search on a table of predictions, whose result has no model."""
    folder = Path(model)
    return folder / RECORD if (folder / RECORD).is_file() and not (folder / "config.json").exists() else None


def check_same_search(folder: Path, front: list[dict[str, Any]] | None) -> None:
    """Refuse a folder with what a search left beside another model: it would be taken for that of this one.

    Args:
        folder: which holds the model, or is to hold it.
        front: of the model's config.

    Raises:
        PertinenceError: what lies there is of another search, or damaged.
    """
    left = [name for name in SEARCH_FILES if (folder / name).is_file()]
    if not set(SEARCH_DATA) & set(left):
        return
    there = read_mapping(folder / (RECORD if RECORD in left else CONFIG), parse_json) or {}
    if not is_same_front(there.get("front"), front):
        raise PertinenceError(
            f"{left[0]} in {folder} is of another search than the model: save the model to a folder of its own, or "
            f"remove what that search left there ({', '.join(left)})"
        )


def is_same_front(front: Any, other: Any) -> bool:
    """Whether two fronts, as configs and records hold them, are of one search; latency may be noted later."""

    def measured(points: Any) -> list[dict[str, Any]]:
        return [{**point, "latency": None} for point in points or ()]

    try:
        return measured(front) == measured(other)
    except TypeError:  # no lists of mappings
        return False


NOT_STORED = ("token", "push_to_hub", "private", "trust_remote_code")
"""Settings that are not stored with a search: each user who runs it again decides on them."""
