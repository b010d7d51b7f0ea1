"""`pertinence info`: describes a searched model."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.settings import setting
from .models import MODEL
from .output import OutputArguments, next_line, print_result
from .parser import Command, CommandParser


@dataclass
class InfoArguments(OutputArguments):
    """How to find a model."""

    token: str | None = setting(None, "Hub token; default: that of `hf auth login`.", group="model")
    revision: str | None = setting(None, "Branch, tag or commit on the Hub.", group="model")


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_settings(InfoArguments)


def run(model: str, access: InfoArguments) -> None:
    from ..hub.info import describe_model

    described, text = describe_model(model, access.token, access.revision, access.verbose)
    print_result(
        described, text, next_line("pertinence", "evaluate", model, "--dataset", "IMAGES"), as_json=access.json
    )


COMMAND = Command(
    "Show the experts and operating points of a searched model, without loading weights.", add_arguments, run
)
