"""Image files that look the same everywhere: whatever display, backend, style or fonts matplotlib has."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..utils.names import display_width, shortened


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
REGULAR = ("normal", "regular", "book", "medium", 400, 500)
"""Weights of fonts that may stand in for others."""
LETTER, LINE, FIRST = 0.065, 0.16, 0.2
"""About the width of a letter, the height of a line of the names of points, and how far the first is below its point,
in inches."""
LONGEST_NAME = 48
"""Columns of a name in a figure; the middle of longer ones is left out."""


@contextmanager
def figure_file(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on, which is written at the end of the context, in the format of the file's suffix.

    The style is matplotlib's own, as that of a user may need TeX or colour everything alike. Text is shown as it is,
    without mathematics between dollars. Letters that the usual font lacks are taken from other fonts of this machine.

    Args:
        path: the file.
        width, height: size in inches.
    """
    import_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", {"text.parse_math": False}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively", UserWarning)
        # A Figure without pyplot needs no display, and shares no state with the user's plots.
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        _use_fonts_that_have(figure)
        figure.savefig(path)


def import_matplotlib() -> None:
    """Import matplotlib, also if `MPLBACKEND` names a backend that is not installed, as a notebook's may not be.

    matplotlib would refuse to be imported. So it is imported without the variable, and then given the backend as it
    would have been, for the plots of the user.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):  # figures that are only written need no backend
            matplotlib.rcParams["backend"] = backend


def palette(name: str, count: int) -> list[Any]:
    """So many colours of a qualitative colormap of matplotlib, or of a rainbow if it has fewer."""
    from matplotlib import colormaps

    colors, rainbow = colormaps[name], colormaps["turbo"]
    return [colors(i) if count <= colors.N else rainbow(i / (count - 1)) for i in range(count)]


def add_legend(axes: Axes, entries: Sequence[tuple[Any, str]], **options: Any) -> None:
    """A legend of these artists and their labels; matplotlib would leave out labels that begin with an underscore."""
    axes.legend(*zip(*entries, strict=True), fontsize=8, **options)


def name_points(
    axes: Axes,
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    notes: Mapping[int, str] | None = None,
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Write names below points, towards the middle near the left and right; a name that would run into another one, or
    into a point, goes one line further away, and a line leads to it.

    Args:
        notes: by index, what is added to the names of points on the lower edge, which are written above them.
        others: further points.
    """
    from matplotlib.patheffects import withStroke

    notes = notes or {}
    figure: Any = axes.figure  # of which matplotlib knows two kinds
    axes.autoscale_view()  # else the limits are only found when the figure is written
    places = axes.transAxes.inverted().transform(axes.transData.transform([*points, *others]))
    width, height = (
        side * share for side, share in zip(figure.get_size_inches(), (0.8, 0.85), strict=True)
    )  # about those of axes
    # Left, right and height of each point and name, in inches.
    taken = [(x * width - LETTER, x * width + LETTER, y * height - LETTER / 2) for x, y in places]
    for index, (name, point, place) in enumerate(zip(short_names(names), points, places, strict=False)):
        text, way = name + notes.get(index, ""), 1 if index in notes else -1
        side = "left" if place[0] < 1 / 3 else "right" if place[0] > 2 / 3 else "center"
        length, x = LETTER * display_width(text), place[0] * width
        left = x - {"left": 0.0, "center": length / 2, "right": length}[side]
        nearest = away = FIRST if way < 0 else 0.12
        while any(
            left < end and start < left + length and abs(level - (place[1] * height + way * away)) < 0.9 * LINE
            for start, end, level in taken
        ):
            away += LINE
        taken.append((left, left + length, place[1] * height + way * away))
        written = axes.annotate(
            text, point, (0, 72 * way * away), textcoords="offset points", fontsize=8, ha=side, zorder=7,
            arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.6} if away > nearest else None,
        )  # fmt: skip
        written.set_path_effects([withStroke(linewidth=2, foreground="white")])  # to be read on lines


def set_log_costs(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers; matplotlib would write them as mathematics."""
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")


def short_names(names: Sequence[str]) -> list[str]:
    """Names as figures show them: long ones are shortened, and numbered where they would become equal."""
    short = [shortened(name, LONGEST_NAME) for name in names]
    return [f"{shown} ({place})" if short.count(shown) > 1 else shown for place, shown in enumerate(short, start=1)]


def _use_fonts_that_have(figure: Figure) -> None:
    """Give the texts of a figure further fonts for letters that the usual one lacks, where this machine has any."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    letters = set("".join(text.get_text() for text in texts))
    if "".join(letters).isascii():
        return
    families = _families_for({ord(letter) for letter in letters if letter.isprintable()})
    for text in texts:
        text.set_fontfamily(families)


def _families_for(letters: set[int]) -> list[str]:
    """The usual font, then the fewest others that have the letters which those before lack."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    families = list(rcParams["font.family"])
    lacking = letters - _letters_of(findfont(FontProperties()))
    if not lacking:
        return families
    # "Last Resort" has a box for every letter.
    files = {
        font.name: font.fname
        for font in fontManager.ttflist
        if font.style == "normal" and font.weight in REGULAR and not font.name.startswith("Last Resort")
    }
    known = {family: lacking & _letters_of(file) for family, file in files.items()}
    while lacking and (found := max(known.values(), key=lambda has: len(has & lacking)) & lacking):
        families.append(next(family for family, has in known.items() if found <= has))
        lacking -= found
    return families


def _letters_of(file: str) -> set[int]:
    """The code points that a font has; none if it cannot be read."""
    from matplotlib.font_manager import get_font

    with suppress(OSError, RuntimeError, ValueError):
        return set(get_font(file).get_charmap())
    return set()
