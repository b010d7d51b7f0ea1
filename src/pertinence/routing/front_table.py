"""How a front is shown: a table of a few points, the whole table, and rows for pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..utils.names import shortened
from ..utils.tables import evenly_spaced
from .costs import GMACS, cost_title
from .metrics import Figures, figure_cells, figure_header, format_table


if TYPE_CHECKING:
    from .front import Front

SHOWN_POINTS, NAME_WIDTH = 8, 24
"""Largest number of operating points in the short table, and of characters of their names there."""


def short_table(front: Front) -> str:
    """A table of at most eight points, the default among them, with what each saves of the reference's cost."""
    if not len(front):
        return "Front(empty)"
    default = [index for index, point in enumerate(front) if point.name == front.default]
    shown = [front[index] for index in evenly_spaced(len(front), SHOWN_POINTS, default)]
    some = next((figures for point in shown for figures in point.figures.values()), None)
    header = ["operating point", *figure_header(some)[:2], cost_title(some.objective if some else GMACS)]
    header += ["saved", "images"]
    rows = []
    for point in shown:
        name = shortened(f"{point.name}{' *' if point.name == front.default else ''}", NAME_WIDTH)
        cells = [""] * (len(header) - 1)
        for kind, figures in point.figures.items():  # those on the report images, if there are any
            share = _saved(front, figures)
            saved = "" if share is None else f"{100 * share:.1f} %"
            cells = [*figure_cells(figures)[:2], f"{figures.cost:.4g}", saved, f"{figures.samples} ({kind})"]
        rows.append([name, *cells])
    notes = ["* the default operating point"] if default else []
    if any(len(point.figures) > 1 for point in shown):
        notes.append(
            "These are figures on report images; budgets and names go by those on search images (to_pandas())."
        )
    if len(shown) < len(front):
        notes.append(
            f"{len(shown)} of {len(front)} operating points are shown; --verbose shows all, as does to_pandas()."
        )
    return "\n".join([format_table(header, rows, expendable=(2,)), *notes])


def whole_table(front: Front) -> str:
    """A table of all points, with the share of the images on which each expert ran last."""
    if not len(front):
        return "Front(empty)"
    shown = [(point.report, "report") if point.report else (point.select, "select") for point in front]
    some = next((figures for figures, _ in shown if figures), None)
    header = ["operating point", "recipe", *figure_header(some), *front.expert_names, "images"]
    rows = []
    for point, (figures, kind) in zip(front, shown, strict=True):
        if figures is None:
            rows.append([point.name, point.recipe] + [""] * (len(header) - 2))
            continue
        kind = f"{kind}, estimate" if figures.estimate else kind
        rows.append([point.name, point.recipe, *figure_cells(figures), f"{figures.samples} ({kind})"])
    table = format_table(header, rows)
    if any(kind == "report" for _, kind in shown):
        table += "\nBudgets are met by the figures on the search images (`point.select`), which these are not."
    return table


def front_rows(front: Front) -> list[dict[str, Any]]:
    """One row for each point, see `Front.rows`."""
    return [
        {"operating_point": point.name, "recipe": point.recipe, "is_default": point.name == front.default}
        | _columns(front, point.select, "select_")
        | _columns(front, point.report, "report_")
        for point in front
    ]


def _columns(front: Front, figures: Figures | None, prefix: str) -> dict[str, Any]:
    """Figures as columns; those of a point that was not measured are missing."""
    if figures is None:
        return {}
    low, high = figures.interval
    columns: dict[str, Any] = {figures.measure: figures.accuracy, "low": low, "high": high, **figures.costs}
    if (saved := _saved(front, figures)) is not None:
        columns["saved"] = saved
    shares = zip(front.expert_names, figures.expert_shares, strict=True)
    columns |= {"images": figures.samples} | {f"share_{name}": share for name, share in shares}
    return {f"{prefix}{name}": value for name, value in columns.items()}


def _saved(front: Front, figures: Figures) -> float | None:
    """Share of the reference expert's cost that is saved; None if that is unknown."""
    return 1 - figures.cost / front.reference_cost if front.reference_cost else None
