"""Labelled images of a split: which column is what, decoding, and stratified division."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import UnidentifiedImageError

from .arguments import DataArguments
from .errors import PertinenceError
from .image_processing_pertinence import decode_image
from .labels import check_same_labels


class LabelledImages(torch.utils.data.Dataset):
    """A data set's images and labels; item i is the decoded image, uint8 (3, H, W), or an error.

    An error is returned, not raised, so that it crosses a worker process as one clear sentence; see `raise_or`.

    Args:
        dataset: with one image and one class-label column, or more and the names of those to use.
        image_column, label_column: default to the only ones.

    Attributes:
        labels: int64 (n,).
        label_names: label by index, or None where the column knows no names.
        fingerprint: identifies the images and their order.
    """

    def __init__(self, dataset: datasets.Dataset, image_column: str | None = None, label_column: str | None = None):
        if isinstance(dataset, datasets.DatasetDict):
            raise PertinenceError(
                f"expected one split, got a data set with the splits {', '.join(dataset)}: choose one"
            )
        if not isinstance(dataset, datasets.Dataset):
            raise PertinenceError(f"expected a datasets.Dataset, got {type(dataset).__name__}")
        self.image_column = _find_column(dataset, image_column, datasets.Image, "image")
        label_column = _find_column(dataset, label_column, datasets.ClassLabel, "label")
        feature = dataset.features[label_column]
        self.label_names = dict(enumerate(feature.names)) if isinstance(feature, datasets.ClassLabel) else None
        self.fingerprint = f"{dataset._fingerprint}-{self.image_column}"
        values = dataset.with_format("numpy")[label_column][:]
        if len(values) == 0:
            raise PertinenceError("the split is empty: there are no images to use")
        if values.dtype.kind not in "iu" or values.min() < 0:
            raise PertinenceError(
                f"column {label_column!r} holds no labels for some images (expected class indices from 0): use "
                "another split"
            )
        self.labels = torch.from_numpy(values.astype(np.int64))
        self._images = dataset.select_columns(self.image_column)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> torch.Tensor | PertinenceError:
        try:
            return decode_image(self._images[index][self.image_column])
        except (PertinenceError, UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return PertinenceError(
                f"image {index} of column {self.image_column!r} cannot be decoded ({reason}): remove it"
            )

    def check_labels(self, labels: dict[int, str]) -> None:
        """Refuse images whose labels cannot be those that an expert answers with."""
        highest = int(self.labels.max())
        if highest >= len(labels):
            raise PertinenceError(
                f"the images have label {highest}, but the experts know only {len(labels)} labels (0 to "
                f"{len(labels) - 1})"
            )
        if self.label_names is not None:
            check_same_labels("the data set", self.label_names, "the pool", labels)


def load_images(arguments: DataArguments, token: str | None = None) -> LabelledImages:
    """Load one split from the Hub or a local folder.

    Raises:
        PertinenceError: no such data set, split or column, or images without labels.
    """
    name, split = arguments.dataset, arguments.split
    try:
        dataset = datasets.load_dataset(name, arguments.dataset_config, split=split, token=token)
    except Exception as error:  # builders fail in any way; say which data set and why
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "Unknown split" in reason:
            raise PertinenceError(f"data set {name!r} has no split {split!r}: {reason}") from error
        raise PertinenceError(f"data set {name!r} cannot be loaded: {reason}") from error
    if arguments.limit is not None and arguments.limit < len(dataset):
        dataset = dataset.select(range(arguments.limit))
    return LabelledImages(dataset, arguments.image_column, arguments.label_column)


def _find_column(dataset: datasets.Dataset, wanted: str | None, kind: type, role: str) -> str:
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise PertinenceError(f"there is no column {wanted!r}; the columns are {', '.join(dataset.column_names)}")
        return wanted
    found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if len(found) == 1:
        return found[0]
    columns = ", ".join(found or dataset.column_names)
    problem = f"several {role} columns ({columns})" if found else f"no {role} column (its columns: {columns})"
    raise PertinenceError(f"the data set has {problem}: name one with --{role}-column (in Python {role}_column=)")


def stratified_split(labels: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide images so that each label has the same share in both parts, as far as its count allows.

    Args:
        labels: int64 (n,).
        fraction: share of the second part.
        seed: fixes the division.

    Returns:
        Row indices of both parts, rising; int64.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    # Every 1/fraction-th of the images in order of their labels: exact overall, and fair to labels of a single image.
    steps = np.floor(np.arange(len(labels) + 1) * fraction + rng.random())
    second = np.zeros(len(labels), dtype=bool)
    second[by_label[np.diff(steps) > 0]] = True
    if second.all() or not second.any():
        raise PertinenceError(f"{len(labels)} images are too few to divide: more are needed")
    return torch.from_numpy(np.flatnonzero(~second)), torch.from_numpy(np.flatnonzero(second))


def raise_or(items: Sequence[Any]) -> list[torch.Tensor]:
    """Decoded images, or the first error among them, raised."""
    for item in items:
        if isinstance(item, PertinenceError):
            raise item
    return list(items)
