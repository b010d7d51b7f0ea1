"""Labelled images of a split, decoded when they are read."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from transformers.utils import logging

from ..utils.errors import PertinenceError, explain, first_line, shown
from ..utils.validation import is_commit
from .columns import Groups, find_column, read_groups, read_labels
from .decoding import decode_image, open_row
from .labels import BY_NAME, describe_doubt, first_difference, in_same_order, places_by_name


logger = logging.get_logger(__name__)

HASHED_IMAGES = 20_000
"""Approximate upper limit on the number of images of a split that are hashed."""


class LabelledImages(torch.utils.data.Dataset[torch.Tensor | PertinenceError]):
    """A data set's images and labels; item i is the decoded image, uint8 (3, H, W), or an error.

    An error is returned, not raised, so that it crosses a worker process as one clear sentence; see `raise_or`.

    Args:
        dataset: one split.
        image_column, label_column: names of the columns; default: the only image and the only class-label column.
        needs_labels: whether to refuse a data set without labels; if false, labels are not read.
        label_map: "by_name": match labels, which may be text, to those of a pool by name (see `match_labels`); None:
            by index.
        group_column: name of a column whose values divide the images into groups, for `evaluate_model`.

    Attributes:
        labels: int64 (n,), or None.
        groups: the group of each image by `group_column`; None without one.
        label_names: name of each label by index, or None if the column has no names.
        digests: int64 (m,), hashes of the encoded images; in a large split only of evenly spaced ones.
        fingerprint: content hash of images and labels, in order; of a large split the hash of the hashed images, of
            the sizes of all images, and of all labels.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_column: str | None = None,
        label_column: str | None = None,
        needs_labels: bool = True,
        label_map: str | None = None,
        group_column: str | None = None,
    ):
        if label_map not in (None, "by_name"):
            raise PertinenceError(f"label_map must be 'by_name' or None, got {shown(label_map)}")
        if isinstance(dataset, datasets.DatasetDict):
            raise PertinenceError(
                f"expected one split, got a data set with the splits {', '.join(dataset)}: choose one"
            )
        if not isinstance(dataset, datasets.Dataset):
            raise PertinenceError(f"expected a datasets.Dataset, got {type(dataset).__name__}")
        dataset = dataset.with_format(None)  # a format of the user's may transform images or hide columns
        self.image_column = find_column(dataset, image_column, datasets.Image, "image")
        if len(dataset) == 0:
            raise PertinenceError("the split is empty: there are no images to use")
        self.labels: torch.Tensor | None = None
        self.label_names: dict[int, str] | None = None
        self.label_map = label_map
        if needs_labels:
            label_column = find_column(dataset, label_column, datasets.ClassLabel, "label")
            self.labels, self.label_names = read_labels(dataset, label_column, label_map)
        self.groups: Groups | None = None if group_column is None else read_groups(dataset, group_column)
        self._set_images(dataset.select_columns(self.image_column))

    def _set_images(self, images: datasets.Dataset) -> None:
        self._images, self._mode = images, images.features[self.image_column].mode
        self._encoded = images.cast_column(self.image_column, datasets.Image(decode=False))
        self.digests = self._hash_images()
        digest = hashlib.sha256(f"{len(images)}".encode())
        digest.update(self.digests.numpy().tobytes())
        if len(self.digests) < len(images):
            digest.update(self._image_sizes().tobytes())
        digest.update(b"" if self.labels is None else self.labels.numpy().tobytes())
        if self.label_map is not None and self.label_names is not None:
            digest.update(json.dumps(list(self.label_names.items())).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def select(self, rows: torch.Tensor) -> LabelledImages:
        """The images of some rows, int64 (m,)."""
        chosen = copy.copy(self)
        chosen.labels = None if self.labels is None else self.labels[rows]
        chosen.groups = None if self.groups is None else self.groups.select(rows)
        chosen._set_images(self._images.select(rows.tolist()))
        return chosen

    def _hash_images(self) -> torch.Tensor:
        encoded = self._encoded
        step = -(-len(encoded) // HASHED_IMAGES)
        if step > 1:
            encoded = encoded.select(range(0, len(encoded), step))
        digests = [_hash_image(image or {})[:8] for batch in encoded.iter(100) for image in batch[self.image_column]]
        return torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.int64).copy())

    def _image_sizes(self) -> np.ndarray:
        """int64 (n,), bytes of every encoded image: they distinguish images that are not hashed."""
        encoded = self._encoded.with_format("arrow")
        sizes = []
        for table in encoded.iter(10_000):
            column = table[self.image_column]  # in chunks: Arrow cannot join more than 2 GiB
            found = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
            if None in found:
                paths = pc.struct_field(column, "path").to_pylist()
                found = [_file_size(path) if size is None else size for size, path in zip(found, paths, strict=True)]
            sizes += found
        return np.array(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor | PertinenceError:
        try:
            return decode_image(open_row(self._encoded[index][self.image_column] or {}, self._mode))
        except Exception as error:  # Pillow and `datasets` may raise anything
            reason = first_line(error) if isinstance(error, PertinenceError) else explain(error)
            return unusable(index, self.image_column, reason)

    @property
    def commit(self) -> str | None:
        """Commit of the Hub data set that the images come from; None if they come from elsewhere."""
        # `datasets` names the folder of a prepared data set by its commit.
        homes = {Path(file["filename"]).parent.name for file in self._images.cache_files}
        return next(iter(homes)) if len(homes) == 1 and all(map(is_commit, homes)) else None

    @property
    def num_copies(self) -> int:
        """How many of the hashed images are duplicates of others."""
        return len(self.digests) - len(self.digests.unique())

    def match_labels(self, labels: dict[int, str]) -> None:
        """Check that the labels are those of a pool; with `label_map="by_name"` give them the pool's indices.

        Args:
            labels: labels of the pool by index.

        Raises:
            PertinenceError: the labels do not fit the pool.
        """
        match_all([self], labels)

    def _match_labels(self, labels: dict[int, str]) -> str | None:
        """The same; returns a warning, if the labels leave a doubt."""
        if self.labels is None:
            return None
        if self.label_map == "by_name" and self.label_names is not None:
            advice = "rename them as the experts call them, or leave their images out"
            used, which = self.labels.unique(return_inverse=True)  # names that no image has need no match
            places = torch.tensor(places_by_name(self.label_names, labels, "the data set", advice, used.tolist()))
            self.labels, self.label_names = places[which], dict(labels)
        highest = int(self.labels.max())
        if highest >= len(labels):
            raise PertinenceError(
                f"the images have label {highest}, but the experts know only {len(labels)} labels (0 to "
                f"{len(labels) - 1})"
            )
        if self.label_names is None:
            return (
                "Whether the labels of the data set are in the order of those of the experts cannot be told, as they "
                "have no names: the same order is assumed."
            )
        own = self.label_names
        order = in_same_order(own, labels)
        if order is False:
            raise PertinenceError(
                "the data set has other labels than the experts, or in another order: "
                f"{first_difference(own, labels)}. Have its labels found by their names, {BY_NAME}"
            )
        return None if order else describe_doubt("the data set", own, "the experts", labels)


def match_all(splits: Iterable[LabelledImages], labels: dict[int, str]) -> None:
    """`LabelledImages.match_labels` for several splits, with one warning of a doubt that they share."""
    for doubt in dict.fromkeys(images._match_labels(labels) for images in splits):
        if doubt is not None:
            logger.warning(doubt)


def labelled(
    images: datasets.Dataset | LabelledImages,
    needs_labels: bool,
    image_column: str | None = None,
    label_column: str | None = None,
    label_map: str | None = None,
    group_column: str | None = None,
) -> LabelledImages:
    """Convert a data set to `LabelledImages`; images without labels, or without groups, are refused if these are
    needed."""
    if not isinstance(images, LabelledImages):
        return LabelledImages(images, image_column, label_column, needs_labels, label_map, group_column)
    if group_column is not None and (images.groups is None or images.groups.by != group_column):
        raise PertinenceError(
            f"these images were loaded without their groups by {group_column!r}: load them with "
            f"LabelledImages(..., group_column={group_column!r})"
        )
    if needs_labels and images.labels is None:
        raise PertinenceError("these images were loaded without labels, which are needed here: load them with labels")
    return images


def _hash_image(image: Mapping[str, Any]) -> bytes:
    """SHA-256 of an image as it is stored; an image that cannot be read is hashed by its path, and decoding it later
    reports the error."""
    content, path = image.get("bytes"), image.get("path")
    if content is None and path is not None and Path(path).is_file():
        with suppress(OSError), open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    return hashlib.sha256(content if content is not None else str(path).encode(errors="replace")).digest()


def _file_size(path: str | None) -> int:
    try:
        return -1 if path is None else Path(path).stat().st_size
    except (OSError, ValueError):
        return -1  # decoding it will report the error


def unusable(index: int, column: str, reason: str) -> PertinenceError:
    """The error for an image that cannot be decoded."""
    return PertinenceError(
        f"image {index} of column {column!r} cannot be decoded ({reason}): remove it, or skip such images with "
        "--on-bad-image skip"
    )


def first_readable(images: LabelledImages) -> torch.Tensor:
    """The first image that can be decoded; raises the error of the first image if none can."""
    decoded = (images[index] for index in range(len(images)))
    found = next((image for image in decoded if not isinstance(image, PertinenceError)), None)
    return raise_or([images[0]])[0] if found is None else found


def raise_or(items: Sequence[torch.Tensor | PertinenceError]) -> list[torch.Tensor]:
    """Return decoded images, or raise the first error among them."""
    decoded = []
    for item in items:
        if isinstance(item, PertinenceError):
            raise item
        decoded.append(item)
    return decoded
