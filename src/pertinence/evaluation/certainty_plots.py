"""The figure of the confidence of answers: is it right, and what is gained by answering only the sure images?"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .figures import add_legend, figure_file, short_names
from .reliability import Reliability


def plot_certainty(measured: Sequence[Reliability], path: str | os.PathLike) -> None:
    """Plot reliability diagrams and risk-coverage curves, the default point first, to one image file."""
    with figure_file(path, 10.5, 4.5) as figure:
        left, right = figure.subplots(1, 2)
        names = short_names([one.name for one in measured])
        left.plot([0, 100], [0, 100], ":", color="0.55", lw=1)
        drawn = []
        for color, name, one in zip(("C0", "C1"), names, measured, strict=False):
            confidence, accuracy = 100 * np.array(one.bins).T
            (line,) = left.plot(confidence, accuracy, "o-", color=color, lw=1.4, ms=4)
            right.plot(np.arange(1, 101), 100 * np.array(one.risks), "-", color=color, lw=1.6)
            drawn.append((line, name))
        lowest = min(min(min(one.bins)) for one in measured)
        for axis in (left.set_xlim, left.set_ylim):
            axis(max(100 * lowest - 5, 0), 101)
        left.set_xlabel("confidence, %")
        left.set_ylabel("right answers, %")
        right.set_xlabel("answered images, the surest first, %")
        right.set_ylabel("wrong answers among them, %")
        right.set_xlim(0, 100)
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.grid(alpha=0.25)
        add_legend(right, drawn, loc="upper left")
