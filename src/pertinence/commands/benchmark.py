"""`pertinence benchmark`: measures the latency of operating points and experts on this device, and stores it."""

from __future__ import annotations

from pathlib import Path

from ..data.arguments import DataArguments
from ..evaluation.arguments import BenchmarkArguments
from .models import MODEL, ModelArguments
from .output import JsonArguments, print_result
from .parser import Command, CommandParser


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_settings(DataArguments, BenchmarkArguments, ModelArguments, JsonArguments)


def run(
    model: str, data: DataArguments, args: BenchmarkArguments, where: ModelArguments, output: JsonArguments
) -> None:
    from ..evaluation.latency import benchmark, store_latency
    from ..evaluation.plots import plot_latency
    from ..hub.layout import LATENCY_FIGURE

    found = benchmark(model, data, args, where.expert_folders, where.revision)
    stored = f"Not stored, as {model} is not a local folder: download it, and time the download."
    if (folder := Path(model)).is_dir():
        store_latency(folder, list(found.front))
        plot_latency(found, folder / LATENCY_FIGURE)
        stored = (
            f"Stored in {model}, with {LATENCY_FIGURE}.\n"
            "Next: choose a point by its time, with set_budget(latency_ms=...)"
        )
    print_result(found.to_dict(), str(found), stored, as_json=output.json)


COMMAND = Command(
    "Time operating points of a searched model, and its experts, on this device, and store the milliseconds.",
    add_arguments,
    run,
)
