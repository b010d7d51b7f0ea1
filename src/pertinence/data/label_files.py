"""Names of labels from a file: one a line, or JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import MALFORMED, PertinenceError, explain, shown
from ..utils.json_files import parse_json, read_text
from ..utils.validation import is_name
from .labels import Labels, is_generic


EXPECTED = "one name a line, in the order of the network's outputs, or JSON (`id2label`, `label2id`, or a list)"
DIGITS = set("0123456789")


def read_label_names(labels: str | Path | Mapping[Any, Any]) -> list[str]:
    """The names of a network's outputs, in order.

    Args:
        labels: a file with one name a line, or a JSON file with `id2label`, `label2id`, a mapping of either kind, or a
            list; or such a mapping.

    Raises:
        PertinenceError: the file does not exist or is damaged, an index is missing, or the labels are only numbers.
    """
    title = "the mapping of labels" if isinstance(labels, Mapping) else str(labels)
    try:
        names = _in_order(labels if isinstance(labels, Mapping) else _read(Path(labels)))
    except (*MALFORMED, OSError) as error:
        reason = str(error) if isinstance(error, PertinenceError) else explain(error)
        raise PertinenceError(f"{title} holds no label names ({reason}): expected {EXPECTED}") from error
    wrong = next((index for index, name in enumerate(names) if not is_name(name)), None)
    if wrong is not None:
        raise PertinenceError(f"{title}: label {wrong} is {shown(names[wrong])}, expected a name of one line")
    if len(names) < 2:
        raise PertinenceError(f"{title} holds {len(names)} label names, expected at least two: {EXPECTED}")
    # Handwritten digits are the one task whose classes are called 0 to 9.
    is_numbers = all(re.fullmatch(r"\d+", name) for name in names) and set(names) != DIGITS
    if is_numbers or is_generic(dict(enumerate(names))):
        raise PertinenceError(
            f"{title} only numbers its labels ({names[0]}, {names[1]}, ...), so that no other order could be noticed: "
            "give each a name"
        )
    return names


def _read(path: Path) -> Any:
    if not path.is_file():
        if re.fullmatch(r"\d+", str(path)):
            raise PertinenceError("it is a number, and there is no such file")
        raise PertinenceError("it is a folder" if path.is_dir() else "there is no such file")
    text = read_text(path).removeprefix("\ufeff")
    if path.suffix.lower() == ".json" or text.lstrip().startswith("{"):
        return parse_json(text)
    return [line.strip() for line in text.rstrip().splitlines()]


def _in_order(values: Any) -> list[str]:
    """Names by index, from a list, `id2label` or `label2id`."""
    if isinstance(values, Mapping):
        for key in ("id2label", "label2id", "label_names"):
            if isinstance(values.get(key), (Mapping, list)):
                return _in_order(values[key])
        if values and all(isinstance(index, int) for index in values.values()):
            if len(set(values.values())) < len(values):
                raise PertinenceError("two labels have the same index")
            values = {index: name for name, index in values.items()}
        by_index: Labels = {int(index): name for index, name in values.items()}
        missing = next((index for index in range(len(by_index)) if index not in by_index), None)
        if missing is not None:
            raise PertinenceError(f"the label {missing} is missing")
        return [by_index[index] for index in range(len(by_index))]
    if not isinstance(values, list):
        raise PertinenceError(f"it is {shown(values)}")
    return values
