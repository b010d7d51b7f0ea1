"""Draws the figure at the top of the README from the record of a search.

uv run python docs/front_figure.py hub_cards/pertinence-cifar10/search_result.json docs/front.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw(record: dict[str, Any], title: str | None = None) -> Figure:
    """Draw the Pareto front, the experts alone and tuned confidence cascades, all on the report images.

    Args:
        record: as stored in `search_result.json`.
        title: above the figure.
    """
    report = record["report"]
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()

    def draw_line(points: list[dict[str, Any]], style: str, **options: Any) -> None:
        axes.plot([p["gmacs"] for p in points], [100 * p["accuracy"] for p in points], style, **options)

    # Older records have one series for each length.
    tuned = [name for name in record["baselines"] if name.startswith(("max-softmax", "confidence"))][-1]
    draw_line(report["experts"], "s", color="C1", ms=8, zorder=3, label="one expert for all images")
    draw_line(record["baselines"][tuned]["points"], "^-", color="0.6", ms=4, lw=1.2, label=f"{tuned}, tuned")
    draw_line(report["front"], "o-", color="C0", ms=3, lw=1.6, zorder=4, label="pertinence")
    default = next(point for point in report["front"] if point["name"] == report["operating_point"])
    experts = {expert["name"]: expert for expert in report["experts"]}
    reference = experts[report.get("reference", report["experts"][-1]["name"])]
    draw_line([default], "o", color="C3", ms=12, mew=2, mfc="none", zorder=5, label="its default operating point")
    for expert in report["experts"]:
        place = (expert["gmacs"], 100 * expert["accuracy"])
        axes.annotate(expert["name"], place, (0, -16), textcoords="offset points", fontsize=9, ha="center")
    saved = 100 * (1 - default["gmacs"] / reference["gmacs"])
    gained = 100 * (default["accuracy"] - reference["accuracy"])
    axes.annotate(
        f"{saved:.0f} % fewer operations than {reference['name']},\n{gained:+.2f} points of accuracy",
        (default["gmacs"], 100 * default["accuracy"]), (25, -110), textcoords="offset points", color="C3", fontsize=10,
        arrowprops={"arrowstyle": "-", "color": "C3", "shrinkB": 7, "relpos": (0, 1)},
    )  # fmt: skip
    axes.set_xlabel("GMACs per image, on average")
    axes.set_ylabel(f"accuracy on {default['samples']:,} unseen images, %")
    axes.set_title(title, fontsize=11)
    axes.margins(0.07, 0.1)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="search_result.json of a run.")
    parser.add_argument("figure", type=Path, help="File to write; its ending says the format.")
    parser.add_argument("--title")
    options = parser.parse_args()
    draw(json.loads(options.record.read_text()), options.title).savefig(options.figure)


if __name__ == "__main__":
    main()
