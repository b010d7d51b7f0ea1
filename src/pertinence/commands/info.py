"""`pertinence info`: describes a searched model."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..utils.settings import Settings, setting
from .models import MODEL
from .parser import Command, CommandParser


@dataclass
class InfoArguments(Settings):
    """How to find a model."""

    token: str | None = setting(None, "Hub token; default: that of `hf auth login`.", group="model")
    revision: str | None = setting(None, "Branch, tag or commit on the Hub.", group="model")
    json: bool = setting(False, "Print everything as JSON.", group="output")


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_settings(InfoArguments)


def run(model: str, access: InfoArguments) -> None:
    from ..hub.info import describe_model

    described, text = describe_model(model, access.token, access.revision)
    print(json.dumps(described, indent=1) if access.json else text)


COMMAND = Command(
    "Show the experts and operating points of a searched model, without loading weights.", add_arguments, run
)
