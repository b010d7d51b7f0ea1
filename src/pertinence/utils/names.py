"""Names that others chose, as tables, figures and files can show them."""

from __future__ import annotations

import re
import unicodedata


RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE)
"""Names that Windows keeps for devices, whatever follows the first dot."""


def display_width(text: str) -> int:
    """Columns that a text takes in a terminal: letters of East Asia take two, marks on other letters none."""
    if text.isascii():
        return len(text)
    return sum(_width(letter) for letter in text)


def _width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def padded(text: str, width: int, right: bool = False) -> str:
    """A text with spaces up to a width in a terminal: behind it, or before it for `right`."""
    spaces = " " * (width - display_width(text))
    return spaces + text if right else text + spaces


def shortened(text: str, most: int) -> str:
    """A text with its middle left out if it is wider than `most` columns."""
    if display_width(text) <= most:
        return text
    ends = "", ""
    for count in range(1, len(text)):
        longer = text[: count - count // 2], text[len(text) - count // 2 :]
        if display_width("".join(longer)) >= most:
            break
        ends = longer
    return "…".join(ends)


def file_name(text: str) -> str:
    """A part of the name of a file, on any system: letters, digits, `-`, `_` and `.`, at most 100 of them."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", text.replace("/", "--"))
    return RESERVED.sub(r"\1-", plain[:100], count=1) if RESERVED.match(plain) else plain[:100]
