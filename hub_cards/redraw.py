"""Draws the front and the shares of folders again, from their records alone.

uv run python hub_cards/redraw.py hub_cards/pertinence-cifar10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pertinence.evaluation.intervals import Difference
from pertinence.evaluation.plots import plot_front, plot_shares
from pertinence.evaluation.report import Evaluation, Series
from pertinence.hub.layout import FRONT_FIGURE, RECORD, SHARES_FIGURE
from pertinence.routing.front import OperatingPoint
from pertinence.routing.metrics import Figures


def read(record: dict[str, Any]) -> Evaluation:
    """What the plots show of a `search_result.json`; differences between points are not read."""
    report = record["report"]
    names = [expert["name"] for expert in report["experts"]]

    def series(points: list[dict[str, Any]], default: int) -> Series:
        read = [
            OperatingPoint(p["name"], p["recipe"], tuple(p["members"]), report=Figures.from_dict(p)) for p in points
        ]
        unknown = (Difference(0.0, 0.0, (0.0, 0.0)),) * len(points)
        return Series(tuple(read), unknown, unknown, default)

    default = [point["name"] for point in report["front"]].index(report["operating_point"])
    return Evaluation(
        series(report["front"], default),
        tuple(names),
        tuple(map(Figures.from_dict, report["experts"])),
        Figures.from_dict(report["oracle"]),
        {name: series(one["points"], one["default"]) for name, one in record["baselines"].items()},
        report["hypervolumes"],
        report["routing_auroc"],
        report["search_to_report_drop"],
        names.index(report.get("reference", names[-1])),  # older records compare with the last expert
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help=f"Folders with {RECORD}.")
    for folder in parser.parse_args().folders:
        evaluation = read(json.loads((folder / RECORD).read_text()))
        plot_front(evaluation, folder / FRONT_FIGURE)
        plot_shares(evaluation, folder / SHARES_FIGURE)


if __name__ == "__main__":
    main()
