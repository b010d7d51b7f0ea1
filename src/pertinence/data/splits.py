"""Stratified splits and folds; duplicates of one image stay in the same part."""

from __future__ import annotations

import numpy as np
import torch

from ..utils.errors import PertinenceError


def stratified_split(
    labels: torch.Tensor, fraction: float, seed: int, digests: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split images so that each label has the same share in both parts, as far as its count allows.

    Args:
        labels: int64 (n,).
        fraction: share of the second part.
        seed: random seed.
        digests: int64 (n,), equal for duplicates of one image, which stay in one part; None: all images differ.

    Returns:
        Row indices of both parts, rising; int64.
    """
    different, copy_of = _without_copies(labels, digests)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(different))
    by_label = shuffled[np.argsort(labels.numpy()[different][shuffled], kind="stable")]
    # Take every 1/fraction-th image in the order of the labels: exact overall, and fair to labels with a single image.
    steps = np.floor(np.arange(len(different) + 1) * fraction + rng.random())
    second = np.zeros(len(different), dtype=bool)
    second[by_label[np.diff(steps) > 0]] = True
    if second.all() or not second.any():
        raise PertinenceError(f"{len(different)} images are too few to divide: more are needed")
    return torch.from_numpy(np.flatnonzero(~second[copy_of])), torch.from_numpy(np.flatnonzero(second[copy_of]))


def assign_folds(labels: torch.Tensor, folds: int, seed: int, digests: torch.Tensor | None = None) -> torch.Tensor:
    """Assign images to stratified folds.

    Args:
        labels: int64 (n,).
        folds: number of folds, k.
        seed: random seed.
        digests: see `stratified_split`.

    Returns:
        int64 (k, m), row indices in random order, padded with -1.
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
    """Rows (g,) of distinct images, rising; and for each image which of these it equals, int64 (n,)."""
    if digests is None:
        rows = np.arange(len(labels))
        return rows, rows
    _, first, found = np.unique(digests.numpy(), return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[found]


def sample_rows(count: int, most: int) -> torch.Tensor:
    """At most so many of `count` rows, evenly spaced from the first to the last: int64."""
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()
