"""What an evaluation means for a user: a short table, and a few sentences about the default operating point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..routing.costs import cost_title
from ..routing.metrics import (
    Figures,
    describe_few,
    describe_saving,
    figure_cells,
    figure_header,
    format_table,
    saved_share,
)
from ..routing.names import BEST_BELOW_REFERENCE
from ..utils.names import shortened
from ..utils.tables import evenly_spaced


if TYPE_CHECKING:
    from .report import Evaluation, Series

SHOWN_ROWS, SHOWN_BASELINES, NAME_WIDTH = 8, 3, 22
"""Largest numbers of rows and of baselines in the short table, and of characters of a name there."""
LARGE_DROP = 0.005
"""A lead that is smaller by more than this than stated tells of other images than those of the search."""


def short_table(evaluation: Evaluation) -> str:
    """At most eight rows: the reference expert, baselines, a few points with the default among them, the oracle."""
    series, reference = evaluation.series, evaluation.experts[evaluation.reference]
    header = ["", *figure_header(reference)[:2], cost_title(reference.objective), "saved"]
    header += ["difference", "95 % interval"]

    def row(name: str, figures: Figures) -> list[str]:
        saved = f"{100 * saved_share(figures, reference):.1f} %"
        return [shortened(name, NAME_WIDTH), *figure_cells(figures)[:2], f"{figures.cost:.4g}", saved]

    def compared(name: str, several: Series, index: int) -> list[str]:
        versus = several.versus_reference[index]
        low, high = versus.interval
        ahead = f"{100 * versus.mean:+.2f} ± {100 * versus.standard_error:.2f}"
        return [*row(name, several.figures[index]), ahead, f"{100 * low:+.2f} .. {100 * high:+.2f}"]

    rows = [[*row(evaluation.expert_names[evaluation.reference], reference), "", ""]]
    baselines = list(evaluation.baselines.items())[:SHOWN_BASELINES]
    rows += [compared(name, several, several.default) for name, several in baselines]
    for index in evenly_spaced(len(series.points), SHOWN_ROWS - len(baselines) - 2, [series.default]):
        name = series.points[index].name
        rows.append(compared(f"{name} *" if index == series.default else name, series, index))
    rows.append([*row("oracle", evaluation.oracle), "", ""])
    return format_table(header, rows, expendable=(2, 6))


def sentences(evaluation: Evaluation) -> list[str]:
    """What the default point saves, what it beats, and what speaks against it: a line each; and which classes lose, if
    any does, and which groups, if they were asked for."""
    by_class, by_group = evaluation.by_class, evaluation.by_group
    compared = [by_class.sentence] if by_class is not None and by_class.losing else []
    compared += [] if by_group is None else [by_group.sentence]
    return [_saving(evaluation), _beaten(evaluation), _objections(evaluation), *compared]


def _saving(evaluation: Evaluation) -> str:
    series, reference = evaluation.series, evaluation.experts[evaluation.reference]
    default, versus = series.figures[series.default], series.versus_reference[series.default]
    low, high = (100 * bound for bound in versus.interval)
    expert = evaluation.expert_names[evaluation.reference]
    return (
        f"{describe_saving(evaluation.default, default, expert, reference)}, at "
        f"{100 * versus.mean:+.2f} points of {default.measure} (95 % interval {low:+.2f} .. {high:+.2f})."
    )


def _beaten(evaluation: Evaluation) -> str:
    default = evaluation.series.figures[evaluation.series.default]
    affordable = [
        (figures.accuracy, name)
        for name, figures in zip(evaluation.expert_names, evaluation.experts, strict=True)
        if figures.cost <= default.cost
    ]
    others = {}
    if affordable:
        accuracy, name = max(affordable)
        others[f"the best expert alone ({name})"] = accuracy
    leads = {name: 100 * (default.accuracy - other) for name, other in (others | _at_cost(evaluation)).items()}
    noise = 100 * _noise(evaluation)
    ahead = [f"{name} by {lead:.2f} points" for name, lead in leads.items() if lead > noise]
    level = [f"{name} ({lead:+.2f} points)" for name, lead in leads.items() if abs(lead) <= noise]
    behind = [f"{name} by {-lead:.2f} points" for name, lead in leads.items() if lead < -noise]
    said = {"it beats": ahead, "it is not measurably different from": level, "it is worse than": behind}
    parts = [f"{verb} {' and '.join(names)}" for verb, names in said.items() if names]
    return f"At its cost {'; '.join(parts)}." if parts else "Nothing else is as cheap."


def _noise(evaluation: Evaluation) -> float:
    """The difference of accuracy that these images can tell: half of the 95 % interval of the default's difference to
    the reference, which is about that of its differences to others; at least one image."""
    low, high = evaluation.series.versus_reference[evaluation.series.default].interval
    return max((high - low) / 2, 1 / evaluation.series.figures[evaluation.series.default].samples)


def _objections(evaluation: Evaluation) -> str:
    series = evaluation.series
    point, versus = series.points[series.default], series.versus_reference[series.default]
    found = []
    if (few := describe_few(point.select)) is not None:
        found.append(few)
    if evaluation.default == BEST_BELOW_REFERENCE:
        found.append("no point was lossless on the search images")
    if versus.interval[1] < 0:
        found.append("its loss is more than chance")
    default = series.figures[series.default]
    ahead = {name: accuracy - default.accuracy for name, accuracy in _at_cost(evaluation).items()}
    if better := [name for name, lead in ahead.items() if lead >= 1 / default.samples]:
        doubt = ", which may be chance" if max(ahead.values()) <= _noise(evaluation) else ""
        found.append(f"at its cost there is better{doubt}: {', '.join(better)}")
    if evaluation.default in evaluation.below_mix:
        found.append("it lies below a random mix of experts")
    if evaluation.drop is not None and evaluation.drop > LARGE_DROP:
        found.append(
            f"leads over the reference are {100 * evaluation.drop:.2f} points smaller than the search said, by chance "
            "or as the images differ"
        )
    if evaluation.warnings:
        found.append(f"{len(evaluation.warnings)} warning{'s' * (len(evaluation.warnings) > 1)}, above")
    return f"Against it: {'; '.join(found)}." if found else f"Against it: nothing on these {default.samples} images."


def _at_cost(evaluation: Evaluation) -> dict[str, float]:
    """The accuracy of each baseline at the default's cost, mixing its two points around it."""
    cost, reached = evaluation.series.figures[evaluation.series.default].cost, {}
    for name, series in evaluation.baselines.items():
        known = sorted((figures.cost, figures.accuracy) for figures in series.figures)
        if known[0][0] <= cost:
            costs, accuracies = zip(*known, strict=True)
            reached[name] = float(np.interp(cost, costs, accuracies))
    return reached
