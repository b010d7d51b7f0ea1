"""Figures of a result."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

from .evaluation import Evaluation, random_mix_hull


def plot_front(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Accuracy against cost: the front with 95 % intervals, static experts, their random-mix hull and the oracle.

    Args:
        evaluation: what was measured.
        path: image file to write; its ending says the format.
    """
    # A Figure of its own, without pyplot: no display, no state shared with the user's plots.
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    experts, front = evaluation.experts, [point.report for point in evaluation.front]

    costs = np.linspace(min(f.gmacs for f in experts), max(f.gmacs for f in experts), 200)
    hull = [100 * random_mix_hull(experts, cost) for cost in costs]
    axes.plot(costs, hull, "--", color="0.6", zorder=1, label="random mix of experts")

    accuracy = np.array([100 * figures.accuracy for figures in front])
    low, high = (np.array([100 * figures.interval[i] for figures in front]) for i in (0, 1))
    axes.errorbar(
        [figures.gmacs for figures in front], accuracy, [accuracy - low, high - accuracy],
        fmt="o-", ms=4, lw=1.2, elinewidth=0.5, capsize=0, color="C0", zorder=2, label="pertinence, 95 % interval",
    )  # fmt: skip
    axes.plot(
        [f.gmacs for f in experts],
        [100 * f.accuracy for f in experts],
        "s",
        color="C1",
        ms=7,
        zorder=3,
        label="expert",
    )
    for name, figures in zip(evaluation.front.expert_names, experts, strict=True):
        axes.annotate(name, (figures.gmacs, 100 * figures.accuracy), (6, -12), textcoords="offset points", fontsize=8)
    default = evaluation.front.find(evaluation.default).report
    axes.plot(
        default.gmacs, 100 * default.accuracy, "o", mfc="none", mec="C3", ms=12, mew=1.5, zorder=4,
        label=f"default: {evaluation.default}",
    )  # fmt: skip
    oracle = evaluation.oracle
    axes.plot(oracle.gmacs, 100 * oracle.accuracy, "*", color="C2", ms=12, label="oracle (its own cost not counted)")

    axes.set_xlabel("GMACs per image")
    axes.set_ylabel(f"accuracy on {oracle.samples} report images, %")
    axes.margins(x=0.08)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8, framealpha=0.9)
    figure.savefig(path)
