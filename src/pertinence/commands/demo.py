"""`pertinence demo`: runs `demo_pool`, which does everything once."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.settings import Settings, setting
from .parser import Command, CommandParser


@dataclass
class DemoArguments(Settings):
    """Where the demo works."""

    output_dir: str = setting("runs/demo", "New folder for experts and searched model.", group="output")
    seed: int = setting(0, "Fixes everything.", group="search", least=0)


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
