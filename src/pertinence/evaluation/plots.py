"""Plots of a result. Each function writes one image file in the format of its suffix."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..routing.costs import cost_unit
from ..routing.metrics import Figures
from ..utils.tables import evenly_spaced
from .figures import add_legend, figure_file, name_points, palette, short_names
from .intervals import non_dominated
from .report import Evaluation, Series


if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .latency import Benchmark


THUMBNAIL = 96


def plot_front(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Plot accuracy against cost: the front with intervals, experts, random routing, tuned cascades, the oracle."""
    experts, oracle = evaluation.experts, evaluation.oracle
    front = evaluation.series.figures
    default = front[evaluation.series.default]
    with figure_file(path, 9, 5.5) as figure:
        axes = figure.subplots()
        legend = _draw_baselines(axes, evaluation)
        accuracy = np.array([100 * figures.accuracy for figures in front])
        low, high = (np.array([100 * figures.interval[i] for figures in front]) for i in (0, 1))
        axes.errorbar(
            [f.cost for f in front], accuracy, [accuracy - low, high - accuracy],
            fmt="o", ms=3.5, elinewidth=0.4, color="C0", alpha=0.9, zorder=4,
        )  # fmt: skip
        (series,) = axes.plot(*_curve(evaluation.series), "-", color="C0", lw=1.5, zorder=4)
        points = [(f.cost, 100 * f.accuracy) for f in experts]
        (alone,) = axes.plot(*zip(*points, strict=True), "s", color="C1", ms=7, zorder=5)
        (ring,) = axes.plot(default.cost, 100 * default.accuracy, "o", mfc="none", mec="C3", ms=12, mew=1.5, zorder=6)
        (star,) = axes.plot(oracle.cost, 100 * oracle.accuracy, "*", color="C2", ms=12, zorder=5)
        axes.set_xlabel(f"{_unit(oracle)} per image")
        axes.set_ylabel(f"{oracle.measure} on {oracle.samples} report images, %")
        axes.margins(0.07)
        axes.grid(alpha=0.25)
        name_points(axes, evaluation.expert_names, points, [-14] * len(points))
        legend += [
            (series, "pertinence, 95 % intervals"),
            (alone, "expert"),
            (ring, f"default: {evaluation.default}"),
            (star, "oracle (its own cost not counted)"),
        ]
        add_legend(axes, legend, loc="lower right", framealpha=0.9)


def _draw_baselines(axes: Axes, evaluation: Evaluation) -> list[tuple[Any, str]]:
    """Draw random routing, the best single experts and the baselines; returns their entries in the legend."""
    experts = evaluation.experts
    costs = np.linspace(min(f.cost for f in experts), max(f.cost for f in experts), 200)
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
        (line,) = axes.plot(*_curve(series), "-", color=color, lw=1.2, alpha=0.9, zorder=2)
        legend.append((line, name))
    return legend


def plot_shares(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Plot the share of the images on which each expert runs last, along the front."""
    front, names = evaluation.series.figures, short_names(evaluation.expert_names)
    with figure_file(path, 9, max(4, 0.19 * len(names) + 1)) as figure:
        axes = figure.subplots()
        legend: list[tuple[Any, str]] = []
        bottom = np.zeros(len(front))
        for index, (name, color) in enumerate(zip(names, palette("tab10", len(names)), strict=True)):
            shares = 100 * np.array([figures.expert_shares[index] for figures in front])
            bars = axes.bar(range(len(front)), shares, 0.95, bottom, color=color, alpha=0.85)
            legend.append((bars, name))
            bottom += shares
        line = axes.axvline(evaluation.series.default, color="k", lw=1, ls=":")
        legend.insert(0, (line, f"default: {evaluation.default}"))
        shown = evenly_spaced(len(front), 9)
        axes.set_xticks(shown, [f"{front[index].cost:.3g}" for index in shown])
        axes.set_xlim(-0.5, len(front) - 0.5)
        axes.set_ylim(0, 100)
        axes.set_xlabel(f"operating points, by {_unit(front[0])} per image")
        axes.set_ylabel("images on which the expert runs last, %")
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
        add_legend(panels[-1], [(mark, "p95 of calls")], loc="lower right")


def plot_examples(examples: Sequence, path: str | os.PathLike) -> None:
    """Plot images by the expert that ran last, the most and the least confident ones; `examples` are from
    `result.pick_examples`."""
    columns, names = max(len(example.easiest) for example in examples), short_names([e.expert for e in examples])
    with figure_file(path, 2 + 1.6 * columns, 1.1 * len(examples) + 0.8) as figure:
        halves = figure.subfigures(1, 2, squeeze=False)
        for half, kind in zip(halves[0], ("easiest", "hardest"), strict=True):
            half.suptitle(f"{kind} for the expert that answered", fontsize=9)
            grid = half.subplots(len(examples), columns, squeeze=False)
            for row, name, example in zip(grid, names, examples, strict=True):
                images = getattr(example, kind)
                for axes, image in zip(row, [*images, *[None] * (columns - len(images))], strict=True):
                    axes.set_axis_off()
                    if image is not None:
                        axes.imshow(image[:: max(1, len(image) // THUMBNAIL), :: max(1, image.shape[1] // THUMBNAIL)])
                row[0].set_title(name, fontsize=8, loc="left")


def _curve(series: Series) -> tuple[list[float], list[float]]:
    """Costs and accuracies (in %) of all points, in their order on the search images."""
    return [f.cost for f in series.figures], [100 * f.accuracy for f in series.figures]


def _unit(figures: Figures) -> str:
    return cost_unit(figures.objective)
