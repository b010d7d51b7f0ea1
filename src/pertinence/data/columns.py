"""Columns of a data set: which one holds the images, which one holds the labels, and which labels it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from ..utils.errors import PertinenceError
from .labels import BY_NAME


MAX_GROUPS = 10_000


@dataclass(frozen=True)
class Groups:
    """The group that each of n images belongs to.

    Attributes:
        by: "class", or the column whose values are the groups.
        codes: int64 (n,), the group of each image.
        names: name of each group by its code.
    """

    by: str
    codes: torch.Tensor
    names: Mapping[int, str]

    def select(self, rows: torch.Tensor) -> Groups:
        """The groups of the images of some rows, int64 (m,)."""
        return replace(self, codes=self.codes[rows])


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


def read_groups(dataset: datasets.Dataset, column: str) -> Groups:
    """The groups that the values of a column make: text, whole numbers, truth values or class labels; images without a
    value are a group of their own.

    Raises:
        PertinenceError: there is no such column, it holds something else, or almost every image is its own group.
    """
    if column not in dataset.column_names:
        raise PertinenceError(
            f"there is no column {column!r} to group images by; the columns are {', '.join(dataset.column_names)}"
        )
    feature, dtype = dataset.features[column], getattr(dataset.features[column], "dtype", "")
    if dtype not in ("string", "large_string", "bool") and not re.fullmatch(r"u?int\d+", dtype):
        raise PertinenceError(
            f"column {column!r} holds {_describe(feature)}: images are grouped by text, whole numbers or truth values"
        )
    encoded = dataset.with_format("arrow")[column][:].cast(pa.string()).dictionary_encode(null_encoding="encode")
    values = encoded.combine_chunks()
    codes = values.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    names: dict[int, str] = {
        code: _group_name(feature, text) for code, text in enumerate(values.dictionary.to_pylist())
    }
    if len(names) > MAX_GROUPS:
        raise PertinenceError(
            f"column {column!r} has {len(names):,} different values, expected at most {MAX_GROUPS:,}: group images by "
            "a column with few values"
        )
    return Groups(column, torch.from_numpy(codes), names)


def _group_name(feature: Any, text: str | None) -> str:
    """The name of a group: that of a class label, else the value as text."""
    if text is None:
        return "(no value)"
    if isinstance(feature, datasets.ClassLabel) and 0 <= int(text) < feature.num_classes:
        return str(feature.int2str(int(text)))
    return text


def _describe(feature: Any) -> str:
    """The type of a column."""
    return getattr(feature, "dtype", None) or type(feature).__name__
