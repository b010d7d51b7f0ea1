"""Description of a searched model, its experts and operating points, from its config alone: no weights are read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..routing.front import Front, OperatingPoint
from ..routing.metrics import Figures, describe_few, describe_saving, format_table
from ..runtime.entry import ExpertEntry
from ..utils.errors import MALFORMED, PertinenceError
from ..utils.json_files import parse_json, read_text
from ..utils.validation import is_name
from .configuration import PertinenceConfig, open_config
from .layout import find_table_record


def describe_model(
    model: str | os.PathLike,
    token: str | bool | None = None,
    revision: str | None = None,
    verbose: bool = False,
) -> tuple[dict[str, Any], str]:
    """Describe a model, or the result of a search on a table of predictions.

    Args:
        model: folder or Hub id.
        token: Hub token.
        revision: branch, tag or commit on the Hub.
        verbose: whether the text has all columns and operating points, with the share of each expert.

    Returns:
        The description as plain values, and as text.

    Raises:
        PertinenceError: there is neither, or it is damaged.
    """
    if (path := find_table_record(model)) is not None:
        return _describe_table_record(path, verbose)
    config = open_config(model, token, revision)
    header = ["expert", "GMACs", "parameters", "licence", "revision", "from"]
    rows = []
    for entry in config.entries:
        known = [f"{entry.gmacs:.4g}", f"{entry.parameters:,}", entry.licence or ""]
        rows.append([entry.name, *known, entry.revision[:14], entry.repo_id or "no file"])
    front, guarantee, promises = config.build_front(), config.build_guarantee(), config.build_promises()
    exports = _exports(config, Path(model))
    parts = [
        f"{len(rows)} experts, {config.num_labels} labels, {config.preprocessing} preprocessing",
        format_table(header, rows, expendable=() if verbose else (4, 5, 3)),
        *_code_lines(config.entries),
        *([_table_of_exports(exports, verbose)] if exports else []),
        *[f"The cost of {entry.name} is uncertain: {entry.cost_note}." for entry in config.entries if entry.cost_note],
        repr(front) if verbose else str(front),
        *([] if guarantee is None else [guarantee.describe(front)]),
        *([] if promises is None else [promises.describe(front)]),
        "\n".join(_about_default(config, front)),
    ]
    keys: tuple[str, ...] = ("experts", "stem", "front", "operating_point", "preprocessing", "guarantee", "promises")
    keys += ("max_error_rate", "reference", "format_version")
    names = cast("dict[int, str]", config.id2label)
    labels = [names[index] for index in range(len(names))]
    values = {"labels": labels, **{key: getattr(config, key) for key in keys}, "exports": exports}
    return values, "\n\n".join(parts)


def _exports(config: PertinenceConfig, folder: Path) -> list[dict[str, Any]]:
    """The exported files of experts, with the size in bytes of those that are in a folder here."""
    found = []
    for entry in config.entries:
        for export in entry.exports:
            path = folder / export.file
            size = path.stat().st_size if folder.is_dir() and path.is_file() else None
            found.append({"expert": entry.name, **export.to_dict(), "bytes": size})
    return found


def _table_of_exports(exports: Sequence[Mapping[str, Any]], verbose: bool) -> str:
    rows = []
    for export in exports:
        agreement = export["agreement"]
        answers = "not compared" if agreement is None else f"{100 * agreement['same_answers']:.2f} %"
        images = "" if agreement is None else str(agreement["images"])
        size = "not here" if export["bytes"] is None else f"{export['bytes'] / 1e6:.3g} MB"
        rows.append([export["expert"], export["precision"], answers, images, size, export["file"]])
    return format_table(
        ["exported", "precision", "same answers", "images", "size", "file"], rows, expendable=() if verbose else (5, 3)
    )


def _about_default(config: PertinenceConfig, front: Front) -> list[str]:
    """What the default operating point gives, and what speaks against it."""
    if not len(front):
        return ["It has no operating points."]
    default, reference = front.find(config.operating_point), config.expert_entries[config.reference_index]
    lines = [f"Default operating point: {default.name}; losses and savings refer to {reference.name}."]
    known = {"report": (default.report, reference.report), "search": (default.select, reference.select)}
    kind = next((kind for kind, pair in known.items() if all(pair)), None)
    if kind is not None:
        ours, alone = known[kind]
        assert ours is not None
        assert alone is not None  # as all of the pair are there
        theirs = Figures.from_dict(alone)
        lines[0] = (
            f"{describe_saving(default.name, ours, reference.name, theirs)}, the reference, at "
            f"{100 * (ours.accuracy - theirs.accuracy):+.2f} points of {ours.measure} on {ours.samples} {kind} images."
        )
    if (few := describe_few(default.select)) is not None:
        lines.append(f"Against it: {few}.")
    return lines


def _code_lines(entries: Sequence[ExpertEntry]) -> list[str]:
    """Which other repositories the code of experts is from, at which commits."""
    return [
        f"The code of {entry.name} is from {repo_id}, at {commit[:14]}; it runs only with --trust-remote-code."
        for entry in entries
        for repo_id, commit in (entry.code or {}).items()
    ]


def _describe_table_record(path: Path, verbose: bool) -> tuple[dict[str, Any], str]:
    try:
        record = parse_json(read_text(path))
        experts = record["settings"]["experts"]
        names = [entry["name"] for entry in experts]
        default = record["report"]["operating_point"]
        cost = {entry["name"]: Figures.from_dict(entry).cost for entry in record["report"]["experts"]}
        reference = cost.get(record["report"].get("reference", names[-1]))
        front = Front([OperatingPoint.from_dict(point) for point in record["front"]], names, default, reference)
        if not all(map(is_name, [*names, default])):
            raise ValueError("a name is not text")
    except MALFORMED as error:
        raise PertinenceError(f"{path} is damaged: search again") from error
    parts = [
        f"{len(names)} models, known by a table of their predictions",
        repr(front) if verbose else str(front),
        f"Default operating point: {default}",
    ]
    return {"experts": experts, "front": front.to_list(), "operating_point": default}, "\n\n".join(parts)
