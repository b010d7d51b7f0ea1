"""Plots of a result. Each function writes one image file in the format of its suffix."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..routing.costs import cost_unit
from ..routing.metrics import Figures
from ..utils.names import shortened
from ..utils.tables import evenly_spaced
from .figures import add_legend, figure_file, name_points, palette, short_names
from .intervals import non_dominated
from .report import Evaluation


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection

    from .latency import Benchmark


THUMBNAIL, CAPTION = 96, 14
"""Pixels of an example, and letters of a label below it."""
CURVE_POINTS = 16
"""Largest number of points of a baseline that are drawn; more make a line of noise."""
EMPTY, FEW = 2 / 3, 1 / 4
"""Experts are left below the axes if they would leave more than this share of the height empty, and at most this share
of the front is as low."""


def plot_front(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Plot accuracy against cost: the front with intervals, experts, random routing, tuned cascades, the oracle."""
    experts, oracle = evaluation.experts, evaluation.oracle
    front = evaluation.series.figures
    default, reference = front[evaluation.series.default], experts[evaluation.reference]
    with figure_file(path, 10.5, 5.5) as figure:
        axes = figure.subplots()
        legend = _draw_baselines(axes, evaluation)
        accuracy = np.array([100 * figures.accuracy for figures in front])
        low, high = (np.array([100 * figures.interval[i] for figures in front]) for i in (0, 1))
        costs = [figures.cost for figures in front]
        band: Collection
        if len(front) > 1:
            band = axes.fill_between(costs, low, high, step=None, color="C0", alpha=0.12, lw=0, zorder=1)
        else:  # which has no area
            band = axes.vlines(costs, low, high, color="C0", alpha=0.25, lw=6, zorder=1)
        (series,) = axes.plot(costs, accuracy, "o-", color="C0", lw=1.5, ms=3, zorder=4)
        axes.axhline(100 * reference.accuracy, color="C1", lw=0.8, ls=":", zorder=1)
        alone = _draw_experts(axes, evaluation)
        (best,) = axes.plot(reference.cost, 100 * reference.accuracy, "D", mfc="none", mec="C1", ms=13, mew=1.5, ls="")
        (ring,) = axes.plot(
            default.cost, 100 * default.accuracy, "o", mfc="none", mec="C3", ms=13, mew=1.8, ls="", zorder=6
        )
        (star,) = axes.plot(oracle.cost, 100 * oracle.accuracy, "*", color="C2", ms=12, ls="", zorder=5)
        axes.set_xlabel(f"{_unit(oracle)} per image")
        axes.set_ylabel(f"{oracle.measure} on {oracle.samples} report images, %")
        axes.grid(alpha=0.25)
        saved = 100 * (1 - default.cost / reference.cost)
        name = short_names(evaluation.expert_names)[evaluation.reference]
        legend = [
            (ring, f"default: {evaluation.default}\n({saved:.0f} % saved)"),
            (best, f"reference: {name}"),
            (series, "pertinence"),
            (band, "95 % intervals"),
            *alone,
            *legend,
            (star, "oracle (its own cost\nnot counted)"),
        ]
        add_legend(axes, legend, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=0.7)


def _draw_baselines(axes: Axes, evaluation: Evaluation) -> list[tuple[Any, str]]:
    """Draw random routing, the best single experts and the baselines; returns their entries in the legend."""
    experts = evaluation.experts
    costs = sorted(f.cost for f in experts)  # the hull is straight in between
    hull = [100 * evaluation.hull(cost) for cost in costs]
    (mix,) = axes.plot(costs, hull, "--", color="0.55", lw=1, zorder=1)
    best = non_dominated([f.cost for f in experts], [f.accuracy for f in experts])
    steps = [*(experts[index].cost for index in best), costs[-1]]
    heights = [100 * experts[index].accuracy for index in [*best, best[-1]]]
    (single,) = axes.step(steps, heights, ":", where="post", color="0.55", lw=1, zorder=1)
    legend: list[tuple[Any, str]] = [(mix, "random mix of experts"), (single, "best single expert")]
    names = short_names(list(evaluation.baselines))
    colors = palette("Set2", len(names))
    for color, name, series in zip(colors, names, evaluation.baselines.values(), strict=True):
        shown = [series.figures[index] for index in evenly_spaced(len(series.points), CURVE_POINTS)]
        (line,) = axes.plot(
            [f.cost for f in shown], [100 * f.accuracy for f in shown], "-", color=color, lw=1.4, alpha=0.9, zorder=2
        )
        legend.append((line, name))
    return legend


def _draw_experts(axes: Axes, evaluation: Evaluation) -> list[tuple[Any, str]]:
    """Draw the experts alone and set the limits of the axes, on whose lower edge are the experts that are far below
    all else; returns entries of the legend."""
    experts, oracle, floor = evaluation.experts, evaluation.oracle, _floor(evaluation)
    baselines = [figures for series in evaluation.baselines.values() for figures in series.figures]
    inside = [f for f in (*evaluation.series.figures, *baselines, *experts, oracle) if f.accuracy >= floor]
    heights = [f.accuracy for f in inside]
    heights += [end for f in evaluation.series.figures if f.accuracy >= floor for end in f.interval]
    if sum(f.accuracy >= floor for f in experts) == 1:  # whose cost alone makes no axis
        axes.set_xlim(*_with_margins([f.cost for f in (*inside, *experts)]))
    else:
        axes.set_xlim(*_with_margins([f.cost for f in inside]))
    axes.set_ylim(*_with_margins([100 * height for height in heights]))
    left, right = axes.get_xlim()
    bottom = axes.get_ylim()[0]
    points, notes = [], {}
    for index, figures in enumerate(experts):
        if figures.accuracy >= floor:
            points.append((figures.cost, 100 * figures.accuracy))
            continue
        points.append((min(max(figures.cost, left), right), bottom))
        notes[index] = f": {100 * figures.accuracy:.1f} %"
        if not left <= figures.cost <= right:
            notes[index] += f" at {figures.cost:.4g} {_unit(figures)}"
    legend: list[tuple[Any, str]] = []
    for marker, label, group in (
        ("s", "expert alone", [point for index, point in enumerate(points) if index not in notes]),
        ("v", "expert below the axes", [points[index] for index in notes]),
    ):
        if group:
            (drawn,) = axes.plot(*zip(*group, strict=True), marker, color="C1", ms=7, ls="", zorder=5, clip_on=False)
            legend.append((drawn, label))
    default = evaluation.series.figures[evaluation.series.default]
    name_points(axes, evaluation.expert_names, points, notes, [(default.cost, 100 * default.accuracy)])
    return legend


def _floor(evaluation: Evaluation) -> float:
    """The accuracy at which the axes begin, if experts are so far below all else that nothing could be told apart."""
    front, experts = evaluation.series.figures, evaluation.experts
    needed = (front[evaluation.series.default], experts[evaluation.reference])
    tops = [max(figures.accuracy for figures in series.figures) for series in evaluation.baselines.values()]
    heights = sorted([*(f.accuracy for f in (*front, *experts)), *tops])
    low, floor = max(pairwise(heights), key=lambda pair: pair[1] - pair[0])
    ends = [end for figures in front if figures.accuracy >= floor for end in figures.interval]
    lowest, highest = min([floor, *ends]), max([heights[-1], evaluation.oracle.accuracy, *ends])
    is_empty = lowest - low > EMPTY * (highest - low)
    is_rare = sum(figures.accuracy <= low for figures in front) <= FEW * len(front)
    return floor if is_empty and is_rare and min(f.accuracy for f in needed) >= floor else 0.0


def _with_margins(values: Sequence[float], share: float = 0.07) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = share * (high - low or abs(high) or 1.0)
    return low - margin, high + margin


def plot_shares(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Plot the share of the images on which each expert runs last, by what an operating point saves."""
    front, names = evaluation.series.figures, short_names(evaluation.expert_names)
    reference = evaluation.experts[evaluation.reference].cost
    saved = np.array([100 * (1 - figures.cost / reference) for figures in front])
    order = np.argsort(saved, kind="stable")
    with figure_file(path, 9, max(4, 0.19 * len(names) + 1)) as figure:
        axes = figure.subplots()
        places, shares = saved[order], 100 * np.array([front[index].expert_shares for index in order]).T
        if len(places) == 1:  # one point is drawn as a bar
            places, shares = places[0] + np.array([-0.5, 0.5]), np.repeat(shares, 2, 1)
        areas = axes.stackplot(places, shares, colors=palette("tab10", len(names)), alpha=0.85)
        line = axes.axvline(saved[evaluation.series.default], color="k", lw=1, ls=":")
        axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
        axes.set_ylim(0, 100)
        axes.set_xlabel(f"{_unit(front[0])} saved, % of {names[evaluation.reference]}")
        axes.set_ylabel("images on which the expert runs last, %")
        legend = [(line, f"default: {evaluation.default}"), *zip(areas, names, strict=True)]
        add_legend(axes, legend, loc="center left", bbox_to_anchor=(1.0, 0.5))


def plot_convergence(hypervolumes: Mapping[str, Sequence[float]], path: str | os.PathLike) -> None:
    """Plot the hypervolume of the archive by generation; one panel for each recipe, as their scales differ."""
    with figure_file(path, 4.5 * max(len(hypervolumes), 1) + 1, 3.5) as figure:
        for axes, (name, values) in zip(
            figure.subplots(1, len(hypervolumes), squeeze=False)[0], hypervolumes.items(), strict=True
        ):
            axes.plot(range(1, len(values) + 1), 100 * np.array(values), "o-", ms=3, lw=1.2)
            axes.set_title(name, fontsize=10)
            axes.set_xlabel("generation")
            axes.set_ylabel("hypervolume, estimate on search images, %")
            axes.ticklabel_format(axis="y", useOffset=False)
            axes.locator_params(axis="x", integer=True)
            axes.grid(alpha=0.25)


def plot_latency(benchmark: Benchmark, path: str | os.PathLike) -> None:
    """Plot the milliseconds an image of points and of experts alone, with the 95 % quantile of calls; one panel for
    each batch size."""
    measured = benchmark.measured
    sizes = sorted({one.batch_size for several in measured.values() for one in several})
    with figure_file(path, 1.5 + 4.0 * len(sizes), 1.2 + 0.35 * len(measured)) as figure:
        panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
        for axes, size in zip(panels, sizes, strict=True):
            shown = [next(one for one in several if one.batch_size == size) for several in measured.values()]
            colors = ["C0" if index < len(benchmark.timed) else "0.7" for index in range(len(shown))]
            axes.barh(range(len(shown)), [one.milliseconds for one in shown], color=colors)
            (mark,) = axes.plot([(one.p95 or 0.0) / size for one in shown], range(len(shown)), "k|", ms=10)
            axes.set_title(f"batch size {size}", fontsize=10)
            axes.set_xlabel(f"ms an image on {shown[0].device}")
            axes.set_yticks(range(len(shown)), short_names(list(measured)))
            axes.grid(axis="x", alpha=0.25)
        panels[0].invert_yaxis()
        add_legend(panels[-1], [(mark, "p95 of calls")], loc="center left", bbox_to_anchor=(1.0, 0.5))


def plot_examples(examples: Sequence, path: str | os.PathLike) -> None:
    """Plot images by the expert that ran last, the most and the least confident ones, with the answer, and the label
    where that is another; `examples` are from `result.pick_examples`."""
    columns, names = max(len(example.easiest) for example in examples), short_names([e.expert for e in examples])
    with figure_file(path, 2 + 1.8 * columns, 1.5 * len(examples) + 0.6) as figure:
        halves = figure.subfigures(1, 2, squeeze=False)
        for half, kind in zip(halves[0], ("surest", "least sure"), strict=True):
            half.suptitle(f"{kind} answers of each expert", fontsize=10)
            grid = half.subplots(len(examples), columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
            for row, name, example in zip(grid, names, examples, strict=True):
                row[0].set_title(name, fontsize=9, loc="left")
                for axes in row:
                    axes.set_axis_off()
                for axes, one in zip(row, example.easiest if kind == "surest" else example.hardest, strict=False):
                    step = max(1, len(one.image) // THUMBNAIL), max(1, one.image.shape[1] // THUMBNAIL)
                    axes.imshow(one.image[:: step[0], :: step[1]])
                    is_right = one.label in (None, one.answer)
                    text = shortened(one.answer, CAPTION)
                    if not is_right:
                        text += f"\nis {shortened(one.label, CAPTION)}"
                    axes.text(0.5, -0.05, text, fontsize=7, ha="center", va="top", transform=axes.transAxes,
                              color="k" if is_right else "C3")  # fmt: skip


def _unit(figures: Figures) -> str:
    return cost_unit(figures.objective)
