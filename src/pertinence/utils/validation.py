"""Checks of untrusted values: JSON allows NaN, and numbers of any size."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from .errors import PertinenceError


LARGEST = 1e15
"""Far above any count, cost or weight; beyond it float arithmetic becomes inexact."""
LONGEST_NAME = 200
JOINERS = str.maketrans("", "", "\u200c\u200d")
"""Characters without width that join letters of Persian or Hindi, and parts of emoji."""


def is_whole(value: Any, least: float = 0, most: float = LARGEST) -> bool:
    """Whether a value is an integer within bounds (inclusive); Booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float = -LARGEST, most: float = LARGEST) -> bool:
    """Whether a value is a finite number within bounds (inclusive); NaN, infinity and Booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def is_name(value: Any) -> bool:
    """Whether a value is one line of printable text, of at most `LONGEST_NAME` characters."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and is_printable(value)


def is_printable(text: str) -> bool:
    """Whether a text is one line without characters that control a terminal; joiners alone would not be seen."""
    seen = text.translate(JOINERS)
    return seen.isprintable() and (seen != "" or text == "")


def is_absolute(path: str) -> bool:
    """Whether a path is absolute on some operating system: files may come from another machine."""
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def split_revision(reference: str) -> tuple[str, str | None]:
    """Split `id` or `id@revision` into the id and the revision of a repository."""
    repo_id, mark, revision = reference.partition("@")
    if mark and not (repo_id and revision):
        raise PertinenceError(f"{reference!r} is no repository at a revision: write id@revision")
    return repo_id, revision or None


def is_commit(revision: str) -> bool:
    """Whether a revision is the full hash of a commit."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None
