"""`pertinence demo`: runs the demo of `demo_pool`."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.settings import Settings, setting
from .parser import Command, CommandParser


@dataclass
class DemoArguments(Settings):
    """Settings of the demo."""

    output_dir: str = setting("runs/demo", "New folder for the experts and the searched model.", group="output")
    seed: int = setting(0, "Random seed.", group="search", least=0)


def add_arguments(parser: CommandParser) -> None:
    parser.add_settings(DemoArguments)


def run(args: DemoArguments) -> None:
    from .demo_pool import run_demo

    run_demo(args.output_dir, args.seed)


COMMAND = Command(
    "Train three small experts on scikit-learn's digits, search, save, reload and classify; offline.",
    add_arguments,
    run,
)
