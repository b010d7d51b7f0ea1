"""Draws the two figures of architecture.md from the layers contract in pyproject.toml and from the real imports.

uv run python docs/architecture_figure.py

It writes docs/architecture.svg (the floors, and which imports which) and docs/roads.svg (the two paths of data through
them). Both files also hold what they show as text, so that a test can tell whether they are current.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import grimp
import matplotlib as mpl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle


DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "src" / "pertinence"
ROADS = {
    "A search": [
        ("load", "experts.pool"),
        ("price", "experts.costs"),
        ("predict", "predictions.predict"),
        ("split", "data.splits"),
        ("fit", "search.front_search"),
        ("report", "evaluation.report"),
        ("compose", "models.modeling_pertinence"),
    ],
    "A run": [
        ("image", "models.image_processing_pertinence"),
        ("transform", "experts.transforms"),
        ("expert", "experts.expert"),
        ("evidence", "routing.evidence"),
        ("stage", "routing.heads"),
        ("decide", "routing.sweep"),
        ("output", "models.modeling_pertinence"),
    ],
}
"""The steps of each path, and the module that does each."""
LOOP = "decide", "transform"
"""The step after which a run repeats, and the first repeated step, while the decision is to defer."""
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "pertinence", "font.family": ["DejaVu Sans", "sans-serif"]}


def read_floors() -> dict[str, Any]:
    """The floors from the top down, each with the role that its `__init__` states, and the floors that it imports."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    graph = grimp.build_graph("pertinence", cache_dir=None)
    imports = {layer: set() for layer in layers}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            above, below = (name.split(".")[1] if "." in name else "" for name in (module, imported))
            if above in imports and below in imports and above != below:
                imports[above].add(below)
    return {
        "floors": [{"name": layer, "role": _role(layer), "imports": sorted(imports[layer])} for layer in layers],
        "roads": {road: [list(step) for step in steps] for road, steps in ROADS.items()},
    }


def _role(layer: str) -> str:
    """The first sentence of a package's docstring."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / layer / "__init__.py").read_text(encoding="utf-8")))
    return re.split(r"\.\s", " ".join(docstring.split()) + " ")[0]


def drawn(path: Path) -> dict[str, Any]:
    """What a figure that `main` wrote shows."""
    description = ElementTree.parse(path).find(".//{http://purl.org/dc/elements/1.1/}description")
    return json.loads(description.text)


def draw_floors(house: dict[str, Any]) -> Figure:
    """Draw a row for each floor: its name, its role, and a dot for each floor that it imports."""
    floors = house["floors"]
    figure, axes = _canvas(height=len(floors) + 0.7, names=[floor["name"] for floor in floors], wide=15.2)
    names = [floor["name"] for floor in floors]
    start, step = 9.5, 0.56
    axes.text(start - 0.2, 0.75, "imports", fontsize=9, color="0.35", style="italic")
    for row, floor in enumerate(floors):
        axes.text(1.95, -row, floor["role"], fontsize=8.5, va="center")
        axes.text(start + step * row, -row, floor["name"], fontsize=7, va="center", ha="center", color="0.35")
        for name in floor["imports"]:
            column = names.index(name)
            axes.plot(start + step * column, -row, "o", ms=8, color=_color(column, names))
            axes.plot([start + step * column] * 2, [-row, -column + 0.25], "-", lw=0.6, color="0.75", zorder=0)
    return figure


def draw_roads(house: dict[str, Any]) -> Figure:
    """Draw the same rows and the two paths through them, each step on the floor of the module that does it."""
    names = [floor["name"] for floor in house["floors"]]
    figure, axes = _canvas(height=len(names) + 0.7, names=names, wide=17)
    left = 2.5
    for road, steps in house["roads"].items():
        axes.text(left - 0.45, 0.75, road, fontsize=10, weight="bold")
        places = [(left + index, -names.index(module.split(".")[0])) for index, (_, module) in enumerate(steps)]
        axes.plot(*zip(*places, strict=True), "-", color="0.45", lw=1.4, zorder=2)
        for (x, y), (step, _) in zip(places, steps, strict=True):
            box = FancyBboxPatch(
                (x - 0.42, y - 0.33), 0.84, 0.66, boxstyle="round,pad=0.02", fc="w", ec="0.45", zorder=3
            )
            axes.add_patch(box)
            axes.text(x, y, step, fontsize=7.5, ha="center", va="center", zorder=4)
        left += len(steps) + 0.6
        if set(LOOP) <= (at := {step: place for (step, _), place in zip(steps, places, strict=True)}).keys():
            _draw_loop(axes, *(at[step] for step in LOOP))
    return figure


def _draw_loop(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    below = min(start[1], end[1]) - 0.75
    way = [(start[0], start[1] - 0.35), (start[0], below), (end[0], below), (end[0], end[1] - 0.35)]
    axes.plot(*zip(*way, strict=True), "--", color="0.45", lw=1.2)
    axes.plot(*way[-1], "^", color="0.45", ms=5)
    axes.text((start[0] + end[0]) / 2, below - 0.2, "defer: the next expert", fontsize=7.5, ha="center", va="center")


def _canvas(height: float, names: list[str], wide: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(wide * 0.66, height * 0.44))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, wide)
    axes.set_ylim(0.5 - len(names) - 0.1, 1.1)
    for row, name in enumerate(names):
        axes.add_patch(
            Rectangle((0.1, -row - 0.44), wide - 0.2, 0.88, color=(*_color(row, names)[:3], 0.13), zorder=-1)
        )
        axes.add_patch(Rectangle((0.1, -row - 0.44), 0.08, 0.88, color=_color(row, names)))
        axes.text(0.3, -row, name, fontsize=10, weight="bold", va="center")
    return figure, axes


def _color(row: int, names: list[str]) -> tuple[float, ...]:
    return colormaps["viridis"](0.9 * row / (len(names) - 1))


def main() -> None:
    house = read_floors()
    with mpl.rc_context(STYLE):
        for name, draw in {"architecture": draw_floors, "roads": draw_roads}.items():
            metadata = {"Date": None, "Creator": None, "Description": json.dumps(house)}
            draw(house).savefig(DOCS / f"{name}.svg", metadata=metadata)


if __name__ == "__main__":
    main()
