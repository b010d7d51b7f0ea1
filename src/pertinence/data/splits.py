"""Division of images into parts: stratified by label, copies of one image together."""

from __future__ import annotations

import numpy as np
import torch

from ..utils.errors import PertinenceError


def stratified_split(
    labels: torch.Tensor, fraction: float, seed: int, digests: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide images so that each label has the same share in both parts, as far as its count allows.

    Args:
        labels: int64 (n,).
        fraction: share of the second part.
        seed: fixes the division.
        digests: int64 (n,), the same for copies of one image, which then stay together; None: all are different.

    Returns:
        Row indices of both parts, rising; int64.
    """
    different, copy_of = _without_copies(labels, digests)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(different))
    by_label = shuffled[np.argsort(labels.numpy()[different][shuffled], kind="stable")]
    # Every 1/fraction-th of the images in order of their labels: exact overall, and fair to labels of a single image.
    steps = np.floor(np.arange(len(different) + 1) * fraction + rng.random())
    second = np.zeros(len(different), dtype=bool)
    second[by_label[np.diff(steps) > 0]] = True
    if second.all() or not second.any():
        raise PertinenceError(f"{len(different)} images are too few to divide: more are needed")
    return torch.from_numpy(np.flatnonzero(~second[copy_of])), torch.from_numpy(np.flatnonzero(second[copy_of]))


def assign_folds(labels: torch.Tensor, folds: int, seed: int, digests: torch.Tensor | None = None) -> torch.Tensor:
    """Deal images out to folds so that each has its share of every label.

    Args:
        labels: int64 (n,).
        folds: k.
        seed: fixes who goes where.
        digests: as in `stratified_split`.

    Returns:
        int64 (k, m), row indices in random order, filled up with -1 to one length.
    """
    different, copy_of = _without_copies(labels, digests)
    count = len(different)
    if count < 2 * folds:
        raise PertinenceError(f"{count} images are too few for {folds} folds: more are needed")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(count)
    by_label = shuffled[np.argsort(labels.numpy()[different][shuffled], kind="stable")]
    fold_of, place = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    fold_of[by_label] = np.arange(count) % folds
    place[shuffled] = np.arange(count)
    in_order = np.argsort(place[copy_of], kind="stable")
    members = [in_order[fold_of[copy_of[in_order]] == fold] for fold in range(folds)]
    dealt = np.full((folds, max(map(len, members))), -1)
    for fold, mine in enumerate(members):
        dealt[fold, : len(mine)] = mine
    return torch.from_numpy(dealt)


def _without_copies(labels: torch.Tensor, digests: torch.Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows (g,) of images that are all different, rising; and which of them each image is a copy of, int64 (n,)."""
    if digests is None:
        rows = np.arange(len(labels))
        return rows, rows
    _, first, found = np.unique(digests.numpy(), return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[found]
