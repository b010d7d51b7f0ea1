"""Columns of a data set: which one holds the images, which one holds the labels, and which labels it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch

from ..utils.errors import PertinenceError
from .labels import BY_NAME


def find_column(dataset: datasets.Dataset, wanted: str | None, kind: type, role: str) -> str:
    """The name of the requested column, or of the only one of a kind.

    Args:
        dataset: one split.
        wanted: the requested name; None: the only column of that kind.
        kind: `datasets.Image` or `datasets.ClassLabel`.
        role: "image" or "label", for messages.

    Raises:
        PertinenceError: the column does not exist, or none or several are of that kind.
    """
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise PertinenceError(f"there is no column {wanted!r}; the columns are {', '.join(dataset.column_names)}")
        if kind is datasets.Image and not isinstance(dataset.features[wanted], kind):
            raise PertinenceError(f"column {wanted!r} holds no images, but {_describe(dataset.features[wanted])}")
        return wanted
    found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    return only_column(found, dataset.column_names, role, "the data set")


def only_column(found: Sequence[str], columns: Sequence[str], role: str, where: str) -> str:
    """The only one of the columns that were found to be of a kind.

    Args:
        found: names of the columns of the kind.
        columns: names of all columns.
        role: "image" or "label", for messages.
        where: what has the columns, for messages.

    Raises:
        PertinenceError: none or several were found.
    """
    if len(found) == 1:
        return found[0]
    listed = ", ".join(found or columns)
    problem = f"several {role} columns ({listed})" if found else f"no {role} column (its columns: {listed})"
    advice = f"name one with --{role}-column (in Python {role}_column=)"
    if role == "label":
        advice += ", give each label a folder of its own, or search without labels, --labels agree"
    raise PertinenceError(f"{where} has {problem}: {advice}")


def read_labels(
    dataset: datasets.Dataset, column: str, label_map: str | None
) -> tuple[torch.Tensor, dict[int, str] | None]:
    """Labels of a column, int64 (n,), and their names by index, None if it has no names; text is its own name.

    Raises:
        PertinenceError: the column holds no labels, or no names although `label_map` requires them.
    """
    feature = dataset.features[column]
    dtype = getattr(feature, "dtype", "")
    if dtype in ("string", "large_string") and label_map is not None:
        # Only the indices are joined: Arrow cannot join more than 2 GiB of text.
        values = dataset.with_format("arrow")[column][:].dictionary_encode().combine_chunks()
        if values.null_count == 0:
            names, labels = values.dictionary.to_pylist(), values.indices.to_numpy()
            return torch.from_numpy(labels.astype(np.int64)), dict(enumerate(names))
    elif dtype in ("string", "large_string"):
        raise PertinenceError(
            f"column {column!r} holds text, not indices of labels: have labels found by their names, {BY_NAME}"
        )
    elif not re.fullmatch(r"u?int\d+", dtype):
        raise PertinenceError(f"column {column!r} holds no labels, but {_describe(feature)}: expected class indices")
    elif label_map is not None and not isinstance(feature, datasets.ClassLabel):
        raise PertinenceError(f"column {column!r} has no names to match labels by: leave label_map out")
    else:
        values = dataset.with_format("numpy")[column][:]
        if values.dtype.kind in "iu" and values.min() >= 0:
            names = dict(enumerate(feature.names)) if isinstance(feature, datasets.ClassLabel) else None
            return torch.from_numpy(values.astype(np.int64)), names
    raise PertinenceError(f"column {column!r} holds no labels for some images: use another split, or leave them out")


def _describe(feature: Any) -> str:
    """The type of a column."""
    return getattr(feature, "dtype", None) or type(feature).__name__
