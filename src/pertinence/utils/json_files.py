"""Untrusted JSON, read as plain values within limits of memory and time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import PertinenceError


MAX_TEXT, MAX_PARTS = 2**26, 2**20
"""Largest number of bytes of a text file, and of lists and mappings in it: twenty million of these would fit into the
bytes, and take four GB of memory."""


def read_text(path: Path) -> str:
    """The content of a text file; raises `PertinenceError` if it has more than `MAX_TEXT` bytes."""
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise PertinenceError(f"it has {size:,} bytes, expected at most {MAX_TEXT:,}")
    return path.read_text(encoding="utf-8")


def check_json(text: str) -> None:
    """Raise `PertinenceError` if parsing a text would take much memory and time."""
    if len(text) > MAX_TEXT or text.count("{") + text.count("[") > MAX_PARTS:
        raise PertinenceError(f"it has more than {MAX_TEXT:,} bytes or {MAX_PARTS:,} lists and mappings")


def parse_json(text: str) -> Any:
    """Parse JSON; raises `ValueError` if it is damaged, or would take much memory and time."""
    check_json(text)
    return json.loads(text)
