"""Batches of images of different sizes: grouped, split into chunks, gathered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch


Images = torch.Tensor | Sequence[torch.Tensor]
"""uint8 images: one tensor (B, 3, H, W), or B tensors (3, H, W) of any sizes."""

STACKED_BYTES = 2**28
"""Images of one size are stacked into one tensor only up to this size: above it the copy costs more than it saves."""


def by_shape(images: Images, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply a function of (b, 3, H, W) tensors to images of any sizes, grouped by shape; the order is kept."""
    if isinstance(images, torch.Tensor):
        return function(images)
    groups = defaultdict(list)
    for index, image in enumerate(images):
        groups[tuple(image.shape)].append(index)
    if len(groups) == 1:
        return function(torch.stack(list(images)))
    order, results = [], []
    for indices in groups.values():
        order.extend(indices)
        results.append(function(torch.stack([images[i] for i in indices])))
    joined = torch.cat(results)
    return joined[torch.tensor(order, device=joined.device).argsort()]


def sorted_by_shape(images: Images) -> tuple[Images, list[int] | None]:
    """Sort images by size, so that few chunks hold several sizes.

    Returns:
        The sorted images, and the index of each in `images`; None instead of the indices if the order did not change.
    """
    if isinstance(images, torch.Tensor) or all(image.shape == images[0].shape for image in images):
        return images, None
    order = sorted(range(len(images)), key=lambda index: images[index].shape)
    return [images[index] for index in order], order


def chunks(images: Images, size: int) -> Sequence[Images]:
    """Split images into as few chunks as possible of at most `size` images each, of about equal length."""
    count = len(images)
    if count <= size:
        return [images]
    size = -(-count // -(-count // size))
    return [images[start : start + size] for start in range(0, count, size)]


def stacked(images: Images) -> Images:
    """Stack images of one size into one tensor, from which rows are gathered at once; others stay a list."""
    if isinstance(images, torch.Tensor):
        return images
    first = images[0]
    if len(images) == 1:
        return first.unsqueeze(0)
    size = sum(image.nbytes for image in images)
    same = all(image.shape == first.shape and image.device == first.device for image in images)
    return torch.stack(list(images)) if same and size <= STACKED_BYTES else images


def take(images: Images, rows: torch.Tensor) -> Images:
    """Select images by row: int64 (b,), rising, on the CPU."""
    if len(rows) == len(images):
        return images
    if isinstance(images, torch.Tensor):
        return images[rows.to(images.device, non_blocking=True)]
    return [images[row] for row in rows.tolist()]
