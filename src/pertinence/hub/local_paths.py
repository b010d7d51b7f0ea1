"""Paths of this machine: removed from settings, and refused in files that are pushed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from ..utils.errors import PertinenceError
from ..utils.validation import is_absolute
from .layout import NOT_STORED


HEADER_SEARCHED = 2**20
"""How many bytes of a weights file (its header) are searched for paths; other files are searched completely."""


def without_paths(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Replace the paths of local folders and files in the settings of a search by names.

    Returns:
        The settings, and the names by setting.
    """
    names: dict[str, list[str]] = {}

    def named(value: Any, setting: str) -> Any:
        if isinstance(value, dict):
            return {key: named(item, setting) for key, item in value.items()}
        if isinstance(value, list):
            return [named(item, setting) for item in value]
        if not is_path(value):
            return value
        names.setdefault(setting, []).append(_last_part(value))
        return _last_part(value)

    private = (*NOT_STORED, "cache_dir")
    changed = {name: named(value, name) for name, value in settings.items() if name not in private}
    if "output_dir" in changed:  # the path is useless to others, but a search requires one
        changed["output_dir"] = _last_part(str(changed["output_dir"]))
        names.pop("output_dir", None)
    return changed, names


def settings_note(folders: Mapping[str, Sequence[str]]) -> str:
    """A comment, to precede settings, on which names stand for local folders; "" if there are no such names."""
    if not folders:
        return ""
    named = "; ".join(f"{setting}: {', '.join(dict.fromkeys(names))}" for setting, names in folders.items())
    return f"# These are names of local folders, to be replaced by your own: {named}\n"


def check_no_paths(files: Mapping[str, Path | bytes], folders: Sequence[Path] = ()) -> None:
    """Refuse files that name a folder of this machine: the home folder, the working folder, or a given one."""
    # Folders like /tmp and /content exist on every machine.
    known = {Path.home(), *(path for path in (Path.cwd(), *folders) if len(path.absolute().parts) > 2)}
    paths = {str(spelt) for path in known for spelt in (path.absolute(), path.resolve()) if len(spelt.parts) > 1}
    for name, content in files.items():
        if isinstance(content, Path):
            with content.open("rb") as file:
                content = file.read(HEADER_SEARCHED if content.suffix == ".safetensors" else -1)
        for path in paths:
            spellings = {path, json.dumps(path)[1:-1], Path(path).as_posix()}
            # Do not match the end of a longer path or of a URL, or the beginning of a longer name.
            found = b"|".join(re.escape(spelling.encode()) for spelling in sorted(spellings))
            if re.search(rb"(?<![\w.:/-])(" + found + rb")(?![\w.-])", content):
                raise PertinenceError(f"{name} names a folder of this machine, {path}: take that out, then push again")


def is_path(value: Any) -> bool:
    """Whether a value is the path of a folder or file on this machine."""
    return isinstance(value, str) and (is_absolute(value) or value.startswith(("./", "../", ".\\", "..\\", "~")))


def _last_part(path: str) -> str:
    """The last part of a path of any operating system."""
    return Path(path).name if path.startswith("/") else PureWindowsPath(path).name
