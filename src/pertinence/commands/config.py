"""The settings that are read before the rest of a command line is parsed: `--config` file, plug-ins and recipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..utils.errors import PertinenceError, shown
from ..utils.json_files import read_text
from ..utils.parsing import parse_yaml
from ..utils.registry import import_plugins
from ..utils.validation import is_name
from .parser import add_plugins, nearest, spelt_with_dashes


SHOWN_SETTINGS = 20


def read_early(command: str, words: Sequence[str]) -> argparse.Namespace:
    """The values of `--plugins`, `--config` and `--recipe` of a command; None for those that are not given."""
    parser = argparse.ArgumentParser(
        f"pertinence {command}", usage="%(prog)s [settings]", add_help=False, allow_abbrev=False
    )
    add_plugins(parser)
    parser.add_argument("--config")
    parser.add_argument("--recipe")
    return parser.parse_known_args([spelt_with_dashes(word) for word in words])[0]


def import_user_plugins(modules: Sequence[str]) -> None:
    """Import the user's own modules, also from the current folder, as with `python -m`.

    Raises:
        PertinenceError: a module cannot be imported.
    """
    if modules and not {os.getcwd(), ""} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    import_plugins(list(modules))


def read_config(path: str, known: set[str] | None = None) -> dict[str, Any]:
    """Read settings from a YAML file.

    Args:
        path: path of the file.
        known: names of settings; others are refused. None: all names are accepted.

    Raises:
        PertinenceError: the file contains anything else.
    """
    try:
        values = parse_yaml(read_text(Path(path)), is_own=True)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise PertinenceError(f"the settings in {path} cannot be read: {reason}") from error
    if not isinstance(values, dict):
        raise PertinenceError(f"{path} must hold settings, one `name: value` each")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    if known is not None:
        check_known(path, values, known)
    return values


def check_known(path: str, values: Iterable[str], known: Collection[str]) -> None:
    """Raise `PertinenceError` if a file names settings that do not exist."""
    if unknown := sorted(name for name in values if name not in known):
        named = ", ".join(
            f"{name}{nearest(name, known)}" if is_name(name) else shown(name) for name in unknown[:SHOWN_SETTINGS]
        )
        raise PertinenceError(f"{path} has unknown settings: {named}; see `pertinence search --help`")


def pop_plugins(path: str, values: dict[str, Any]) -> list[str]:
    """Remove `plugins`, names of modules, from the settings of a file, and return them.

    Raises:
        PertinenceError: the value is neither the name of a module nor a list of such names.
    """
    plugins = values.pop("plugins", None) or []
    plugins = [plugins] if isinstance(plugins, str) else plugins
    if not isinstance(plugins, list) or not all(map(is_name, plugins)):
        raise PertinenceError(f"plugins in {path} must be a list of names of modules, got {shown(plugins)}")
    return plugins
