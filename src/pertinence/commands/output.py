"""How commands print a result: as a summary, in full, or as JSON."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from ..utils.settings import Settings, setting
from .parser import flag_of


@dataclass
class JsonArguments(Settings):
    """Whether a result is printed for programs."""

    json: bool = setting(False, "Print the result as JSON, and nothing else.", group="output")


@dataclass
class OutputArguments(JsonArguments):
    """How much of a result is printed."""

    verbose: bool = setting(False, "Print every row and every figure.", group="output")


def print_result(values: dict[str, Any], *texts: str, as_json: bool) -> None:
    """Print a result, as JSON or as lines of text."""
    print(json.dumps(values, indent=1) if as_json else "\n".join(texts))


def given_flags(*parts: Settings) -> list[str]:
    """The flags of the settings that differ from their defaults, except the token."""
    words = []
    for part in parts:
        for one in part.used():
            value, flag = getattr(part, one.name), flag_of(one.name)
            if value != one.default and one.name != "token":
                words += [flag] if value is True else [flag, str(value)]
    return words


def next_line(*words: str) -> str:
    """The line of a command's text that says what to type next."""
    return f"Next: {shlex.join(words)}"
