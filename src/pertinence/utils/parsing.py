"""Untrusted YAML, read as plain values within limits of memory and time, and the files beside a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from .errors import MALFORMED, PertinenceError, explain, first_line
from .json_files import read_text


MAX_YAML = 2**19
"""Largest number of bytes of YAML, which is slow to parse."""


class _PlainLoader(yaml.SafeLoader):
    """A loader without aliases: nine lines of nested aliases expand to more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name): write out what they stand for")
        return super().compose_node(parent, index)


def parse_yaml(text: str, is_own: bool = False) -> Any:
    """Parse YAML into plain values.

    Args:
        text: the text.
        is_own: whether it is a file that the user has written, which may have anchors and aliases.

    Raises:
        yaml.YAMLError: it is damaged, too long, or has aliases.
    """
    if len(text) > MAX_YAML:
        raise yaml.YAMLError(f"it has more than {MAX_YAML:,} bytes")
    try:
        values = yaml.load(text, yaml.SafeLoader if is_own else _PlainLoader)
    except MALFORMED as error:  # raised for values that do not match their tags
        raise yaml.YAMLError(explain(error)) from error
    if _contains_itself(values, [], set()):
        raise yaml.YAMLError("an alias (*name) stands for something that contains it")
    return values


def _contains_itself(value: Any, around: list[int], checked: set[int]) -> bool:
    """Whether a list or mapping contains itself; `around`: what it is in; `checked`: what is known not to."""
    if not isinstance(value, (dict, list)) or id(value) in checked:
        return False
    if id(value) in around:
        return True
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    found = any(_contains_itself(one, [*around, id(value)], checked) for one in inner)
    checked.add(id(value))
    return found


def read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any] | None:
    """Read a file beside a model; None if it does not exist. Raises `PertinenceError` if it is damaged."""
    if not path.is_file():
        return None
    try:
        values = parse(read_text(path))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        what = "too large" if isinstance(error, PertinenceError) else "damaged"
        raise PertinenceError(f"{path} is {what} ({first_line(error)}): search again, or remove it") from error
    if not isinstance(values, dict):
        raise PertinenceError(f"{path} is damaged: search again, or remove it")
    return values
