"""Plots of a result. Each function writes one image file in the format of its suffix."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..routing.costs import cost_unit
from ..routing.metrics import Figures
from .intervals import non_dominated
from .report import Evaluation, Series


if TYPE_CHECKING:
    from .latency import Benchmark


DPI = 150
THUMBNAIL = 96


def plot_front(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Plot accuracy against cost: the front with intervals, experts, random routing, tuned cascades, the oracle."""
    # A Figure without pyplot needs no display, and shares no state with the user's plots.
    figure = Figure(figsize=(9, 5.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    experts, oracle = evaluation.experts, evaluation.oracle
    unit, measure = _unit(oracle), oracle.measure

    costs = np.linspace(min(f.cost for f in experts), max(f.cost for f in experts), 200)
    hull = [100 * evaluation.hull(cost) for cost in costs]
    axes.plot(costs, hull, "--", color="0.55", lw=1, zorder=1, label="random mix of experts")
    best = non_dominated([f.cost for f in experts], [f.accuracy for f in experts])
    steps = [*(experts[index].cost for index in best), costs[-1]], [*(experts[index].accuracy for index in best)]
    axes.step(steps[0], [100 * a for a in [*steps[1], steps[1][-1]]], ":", where="post", color="0.55", lw=1, zorder=1,
              label="best single expert")  # fmt: skip
    colors = colormaps["Set2"](range(len(evaluation.baselines)))
    for color, (name, series) in zip(colors, evaluation.baselines.items(), strict=True):
        axes.plot(*_curve(series), "-", color=color, lw=1.2, alpha=0.9, zorder=2, label=name)

    front = evaluation.series.figures
    accuracy = np.array([100 * figures.accuracy for figures in front])
    low, high = (np.array([100 * figures.interval[i] for figures in front]) for i in (0, 1))
    axes.errorbar(
        [f.cost for f in front], accuracy, [accuracy - low, high - accuracy],
        fmt="o", ms=3.5, elinewidth=0.4, color="C0", alpha=0.9, zorder=4,
    )  # fmt: skip
    axes.plot(*_curve(evaluation.series), "-", color="C0", lw=1.5, zorder=4, label="pertinence, 95 % intervals")
    axes.plot(
        [f.cost for f in experts], [100 * f.accuracy for f in experts], "s", color="C1", ms=7, zorder=5, label="expert"
    )
    for name, figures in zip(evaluation.expert_names, experts, strict=True):
        axes.annotate(name, (figures.cost, 100 * figures.accuracy), (0, -14), textcoords="offset points",
                      fontsize=8, ha="center")  # fmt: skip
    default = front[evaluation.series.default]
    axes.plot(default.cost, 100 * default.accuracy, "o", mfc="none", mec="C3", ms=12, mew=1.5, zorder=6,
              label=f"default: {evaluation.default}")  # fmt: skip
    axes.plot(oracle.cost, 100 * oracle.accuracy, "*", color="C2", ms=12, zorder=5,
              label="oracle (its own cost not counted)")  # fmt: skip

    axes.set_xlabel(f"{unit} per image")
    axes.set_ylabel(f"{measure} on {oracle.samples} report images, %")
    axes.margins(0.07)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8, framealpha=0.9)
    figure.savefig(path)


def plot_shares(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Plot the share of the images on which each expert runs last, along the front."""
    figure = Figure(figsize=(9, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    front = evaluation.series.figures
    bottom = np.zeros(len(front))
    for index, name in enumerate(evaluation.expert_names):
        shares = 100 * np.array([figures.expert_shares[index] for figures in front])
        axes.bar(range(len(front)), shares, 0.95, bottom, label=name, alpha=0.85)
        bottom += shares
    axes.axvline(evaluation.series.default, color="k", lw=1, ls=":", label=f"default: {evaluation.default}")
    shown = np.unique(np.linspace(0, len(front) - 1, min(len(front), 9)).round().astype(int))
    axes.set_xticks(shown, [f"{front[index].cost:.3g}" for index in shown])
    axes.set_xlim(-0.5, len(front) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"operating points, by {_unit(front[0])} per image")
    axes.set_ylabel("images on which the expert runs last, %")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.savefig(path)


def plot_convergence(hypervolumes: Mapping[str, Sequence[float]], path: str | os.PathLike) -> None:
    """Plot the hypervolume of the archive by generation; one panel for each recipe, as their scales differ."""
    figure = Figure(figsize=(4.5 * max(len(hypervolumes), 1) + 1, 3.5), dpi=DPI, layout="constrained")
    for axes, (name, values) in zip(
        figure.subplots(1, len(hypervolumes), squeeze=False)[0], hypervolumes.items(), strict=True
    ):
        axes.plot(range(1, len(values) + 1), 100 * np.array(values), "o-", ms=3, lw=1.2)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("generation")
        axes.set_ylabel("hypervolume, estimate on search images, %")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    figure.savefig(path)


def plot_latency(benchmark: Benchmark, path: str | os.PathLike) -> None:
    """Plot the milliseconds an image of points and of experts alone, with the 95 % quantile of calls; one panel for
    each batch size."""
    measured = benchmark.measured
    sizes = sorted({one.batch_size for several in measured.values() for one in several})
    figure = Figure(figsize=(1.5 + 4.0 * len(sizes), 1.2 + 0.35 * len(measured)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axes, size in zip(panels, sizes, strict=True):
        shown = [next(one for one in several if one.batch_size == size) for several in measured.values()]
        colors = ["C0" if index < len(benchmark.timed) else "0.7" for index in range(len(shown))]
        axes.barh(range(len(shown)), [one.milliseconds for one in shown], color=colors)
        axes.plot([(one.p95 or 0.0) / size for one in shown], range(len(shown)), "k|", ms=10, label="p95 of calls")
        axes.set_title(f"batch size {size}", fontsize=10)
        axes.set_xlabel(f"ms an image on {shown[0].device}")
        axes.set_yticks(range(len(shown)), list(measured))
        axes.grid(axis="x", alpha=0.25)
    panels[0].invert_yaxis()
    panels[-1].legend(loc="lower right", fontsize=8)
    figure.savefig(path)


def plot_examples(examples: Sequence, path: str | os.PathLike) -> None:
    """Plot images by the expert that ran last, the most and the least confident ones; `examples` are from
    `result.pick_examples`."""
    columns = max(len(example.easiest) for example in examples)
    figure = Figure(figsize=(2 + 1.6 * columns, 1.1 * len(examples) + 0.8), dpi=DPI, layout="constrained")
    halves = figure.subfigures(1, 2, squeeze=False)
    for half, kind in zip(halves[0], ("easiest", "hardest"), strict=True):
        half.suptitle(f"{kind} for the expert that answered", fontsize=9)
        grid = half.subplots(len(examples), columns, squeeze=False)
        for row, example in zip(grid, examples, strict=True):
            images = getattr(example, kind)
            for axes, image in zip(row, [*images, *[None] * (columns - len(images))], strict=True):
                axes.set_axis_off()
                if image is not None:
                    axes.imshow(image[:: max(1, len(image) // THUMBNAIL), :: max(1, image.shape[1] // THUMBNAIL)])
            row[0].set_title(example.expert, fontsize=8, loc="left")
    figure.savefig(path)


def _curve(series: Series) -> tuple[list[float], list[float]]:
    """Costs and accuracies (in %) of all points, in their order on the search images."""
    return [f.cost for f in series.figures], [100 * f.accuracy for f in series.figures]


def _unit(figures: Figures) -> str:
    return cost_unit(figures.objective)
