"""Hashes of the images that a search used, stored with its model, so that later calibration can leave them out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..utils.downloads import find_file
from ..utils.errors import PertinenceError
from ..utils.io import replaced
from ..utils.tensors import save_tensors


if TYPE_CHECKING:  # importing the package must not import datasets
    from .dataset import LabelledImages

SEEN = "seen_images.safetensors"
TOLERATED_SHARED = 0.01
"""Tolerated share of images that a search has seen: a data set may contain duplicates."""


@dataclass(frozen=True)
class SeenImages:
    """Hashes of the images of each split that a search used.

    Attributes:
        digests: int64 (m,) by the role of the split, see `LabelledImages`.
        counts: number of images of each split; a large split has more images than digests.
    """

    digests: Mapping[str, torch.Tensor]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, **splits: LabelledImages | None) -> SeenImages:
        """Collect the hashes of splits, given by their roles."""
        given = {name: images for name, images in splits.items() if images is not None}
        return cls(
            {name: images.digests for name, images in given.items()},
            {name: len(images) for name, images in given.items()},
        )

    def save(self, folder: Path) -> None:
        with replaced(folder / SEEN) as temporary:
            counts = {name: str(count) for name, count in self.counts.items()}
            save_tensors(self.digests, temporary, counts)

    @classmethod
    def load(
        cls, model_path: str | os.PathLike, token: str | bool | None = None, revision: str | None = None
    ) -> SeenImages | None:
        """Load the hashes stored beside a model; None if it has none.

        Raises:
            PertinenceError: the file is damaged.
        """
        path = find_file(model_path, SEEN, token, revision=revision)
        if path is None:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                counts = {name: int(count) for name, count in (file.metadata() or {}).items()}
                if not counts or set(counts) != set(file.keys()):
                    raise ValueError("it does not say how many images there were")
                digests = {name: file.get_tensor(name) for name in counts}
                for name, values in digests.items():
                    if values.dtype != torch.int64 or values.ndim != 1 or not len(values) <= counts[name]:
                        raise ValueError(f"{name} holds no hashes of {counts[name]} images")
                return cls(digests, counts)
        except (SafetensorError, ValueError, OSError) as error:
            raise PertinenceError(f"{path} is damaged: fetch it again, or remove it to go on unchecked") from error

    def unseen(self, images: LabelledImages) -> np.ndarray | None:
        """Rows of the images that are not among these; None unless every image of both sides is hashed."""
        hashed = {name: len(digests) for name, digests in self.digests.items()}
        if len(images.digests) < len(images) or hashed != self.counts:
            return None
        return np.flatnonzero(~np.isin(images.digests, torch.cat(list(self.digests.values()))))

    def shared(self, images: LabelledImages, *splits: str) -> float:
        """The share of images that are among these; an estimate for a large split, of which not every image is hashed.

        Args:
            images: the images to look for.
            splits: roles of the splits to look in; default: all.
        """
        total = 0.0
        for name in splits or self.digests:
            if name in self.digests:
                found = np.isin(images.digests, self.digests[name]).mean()
                total += float(found) * self.counts[name] / max(len(self.digests[name]), 1)
        return min(total, 1.0)
