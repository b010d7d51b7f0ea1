"""The folder of a saved model and of its search: names of files, and whether the files belong together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.seen import SEEN
from ..runtime.entry import CONFIG
from ..utils.errors import PertinenceError
from ..utils.io import replaced
from ..utils.json_files import parse_json
from ..utils.parsing import read_mapping


RECORD = "search_result.json"
"""The file that marks the folder of a result."""
ROUTING_REFERENCE = "routing_reference.safetensors"
WEIGHT_PATTERNS = (
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    ROUTING_REFERENCE,
)
"""Patterns of the weights of a model and the files that belong to them; when a model is saved over another one, all of
these files of the other are removed."""
STATE = "search_state"
"""Folder, within that of the result, of a search that has not finished."""
SETTINGS = "search.yaml"
BASELINES = "baselines.safetensors"
LATENCY_FIGURE = "latency.png"
"""The figure of a benchmark, which is not of the search."""
FRONT_FIGURE, SHARES_FIGURE, CERTAINTY_FIGURE, CONVERGENCE_FIGURE, EXAMPLES_FIGURE = (
    "front.png",
    "shares.png",
    "certainty.png",
    "convergence.png",
    "examples.png",
)
SEARCH_DATA = (RECORD, BASELINES, SEEN)
"""Files of a search that are read later, and must belong to the model beside them."""
SEARCH_FILES = (
    *SEARCH_DATA,
    SETTINGS,
    FRONT_FIGURE,
    SHARES_FIGURE,
    CERTAINTY_FIGURE,
    CONVERGENCE_FIGURE,
    EXAMPLES_FIGURE,
)
"""Files that a search writes beside its model."""


def update_config(path: Path, values: Mapping[str, Any]) -> None:
    """Replace some values of a model's config.json."""
    values = json.loads(path.read_text()) | dict(values)
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def find_table_record(model: str | os.PathLike) -> Path | None:
    """The record in the folder of a search on a table of predictions, which has no model; None for other folders."""
    folder = Path(model)
    return folder / RECORD if (folder / RECORD).is_file() and not (folder / CONFIG).exists() else None


def check_same_search(folder: Path, front: list[dict[str, Any]] | None) -> None:
    """Refuse a folder with files of the search of another model, which would be mistaken for those of this one.

    Args:
        folder: folder that contains, or will contain, the model.
        front: front in the model's config.

    Raises:
        PertinenceError: the files belong to another search, or are damaged.
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
    """Whether two fronts, as in configs and records, are from the same search; latencies, added later, are ignored."""

    def measured(points: Any) -> list[dict[str, Any]]:
        return [{**point, "latency": None} for point in points or ()]

    try:
        return measured(front) == measured(other)
    except TypeError:  # they are not lists of mappings
        return False


NOT_STORED = ("token", "push_to_hub", "private", "trust_remote_code")
"""Settings that are not stored with a search: every user who repeats it chooses them anew."""
