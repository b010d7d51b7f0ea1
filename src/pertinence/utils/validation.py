"""Checks of values from files and commands of others; JSON knows NaN, and numbers of any size."""

from __future__ import annotations

import re
from typing import Any

from .errors import PertinenceError


LARGEST = 1e15
"""What no count, cost or weight comes near; above it float arithmetic goes wrong."""
LONGEST_NAME = 200


def is_whole(value: Any, least: float = 0, most: float = LARGEST) -> bool:
    """Whether it is a whole number between two others, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float = -LARGEST, most: float = LARGEST) -> bool:
    """Whether it is a number between two others; NaN and infinity are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def is_name(value: Any) -> bool:
    """Whether it is one line of text of a moderate length, which does nothing to a terminal that shows it."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def split_revision(reference: str) -> tuple[str, str | None]:
    """Id and revision of a repository that is named by `id` or `id@revision`."""
    repo_id, mark, revision = reference.partition("@")
    if mark and not (repo_id and revision):
        raise PertinenceError(f"{reference!r} is no repository at a revision: write id@revision")
    return repo_id, revision or None


def is_commit(revision: str) -> bool:
    """Whether it is that of a commit, in full."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None
