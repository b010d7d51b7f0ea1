"""Description of a searched model, its experts and operating points, from its config alone: no weights are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from ..routing.front import Front, OperatingPoint
from ..routing.metrics import format_table
from ..utils.errors import MALFORMED, PertinenceError
from ..utils.parsing import parse_json, read_text
from ..utils.validation import is_name
from .configuration import open_config
from .layout import find_table_record


def describe_model(
    model: str | os.PathLike, token: str | bool | None = None, revision: str | None = None
) -> tuple[dict[str, Any], str]:
    """Describe a model, or the result of a search on a table of predictions.

    Returns:
        The description as plain values, and as text.

    Raises:
        PertinenceError: there is neither, or it is damaged.
    """
    if (path := find_table_record(model)) is not None:
        return _describe_table_record(path)
    config = open_config(model, token, revision)
    header = ["expert", "GMACs", "parameters", "licence", "revision", "from"]
    rows = []
    for entry in config.entries:
        known = [f"{entry.gmacs:.4g}", f"{entry.parameters:,}", entry.licence or ""]
        rows.append([entry.name, *known, entry.revision[:14], entry.repo_id or "no file"])
    front, guarantee = config.build_front(), config.build_guarantee()
    parts = [
        f"{len(rows)} experts, {config.num_labels} labels, {config.preprocessing} preprocessing",
        format_table(header, rows),
        *[f"The cost of {entry.name} is uncertain: {entry.cost_note}." for entry in config.entries if entry.cost_note],
        repr(front),
        f"Default operating point: {config.operating_point}; losses and savings refer to "
        f"{config.expert_names[config.reference_index]}.",
        *([] if guarantee is None else [guarantee.describe(front)]),
    ]
    keys = ("experts", "stem", "front", "operating_point", "preprocessing", "guarantee", "reference", "format_version")
    names = cast("dict[int, str]", config.id2label)
    labels = [names[index] for index in range(len(names))]
    return {"labels": labels, **{key: getattr(config, key) for key in keys}}, "\n\n".join(parts)


def _describe_table_record(path: Path) -> tuple[dict[str, Any], str]:
    try:
        record = parse_json(read_text(path))
        experts = record["settings"]["experts"]
        names = [entry["name"] for entry in experts]
        front = Front([OperatingPoint.from_dict(point) for point in record["front"]], names)
        default = record["report"]["operating_point"]
        if not all(map(is_name, [*names, default])):
            raise ValueError("a name is not text")
    except MALFORMED as error:
        raise PertinenceError(f"{path} is damaged: search again") from error
    parts = [
        f"{len(names)} models, known by a table of their predictions",
        repr(front),
        f"Default operating point: {default}",
    ]
    return {"experts": experts, "front": front.to_list(), "operating_point": default}, "\n\n".join(parts)
