"""`pertinence benchmark`: measures the latency of the operating points on this device, and stores it."""

from __future__ import annotations

from pathlib import Path

from ..data.arguments import DataArguments
from ..evaluation.arguments import BenchmarkArguments
from .models import MODEL, ModelArguments
from .parser import Command, CommandParser


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_settings(DataArguments, BenchmarkArguments, ModelArguments)


def run(model: str, data: DataArguments, args: BenchmarkArguments, where: ModelArguments) -> None:
    from ..evaluation.latency import benchmark, latency_table, store_latency

    points = benchmark(model, data, args, where.expert_folders, where.revision)
    print(latency_table(points))
    if Path(model).is_dir():
        store_latency(model, points)
        print(f"Stored in {model}; choose an operating point by latency with set_budget(latency_ms=...).")
    else:
        print(f"Not stored, as {model} is not a local folder: download it, and time the download.")


COMMAND = Command(
    "Time the operating points of a searched model on this device, and store the milliseconds in its config.",
    add_arguments,
    run,
)
