"""Batches of images of different sizes: grouped, split into chunks, gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch


Images = torch.Tensor | Sequence[torch.Tensor]
"""uint8 images: one tensor (B, 3, H, W), or B tensors (3, H, W) of any sizes."""

STACKED_BYTES = 2**28
"""Images of one size are stacked into one tensor only up to this size: above it the copy costs more than it saves."""


def by_shape(images: Images, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[torch.Tensor]:
    """Apply a function of (b, 3, H, W) tensors to images of any sizes, to neighbours of one size at once.

    Yields:
        Its results, in the order of the images; neighbours of one shape are joined.
    """
    if isinstance(images, torch.Tensor):
        yield function(images)
        return
    runs = (list(run) for _, run in groupby(images, key=lambda image: image.shape))
    results = (function(torch.stack(run)) for run in runs)
    for _, same in groupby(results, key=lambda result: result.shape[1:]):
        joined = list(same)
        yield joined[0] if len(joined) == 1 else torch.cat(joined)


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


def decoded_batches(
    images: torch.utils.data.Dataset[Any], batches: Sequence[Sequence[int]], num_workers: int
) -> torch.utils.data.DataLoader[Any]:
    """Batches of items of a data set that decodes images, as lists; workers decode while experts run.

    Args:
        images: the data set.
        batches: the rows of each batch.
        num_workers: number of processes that decode; 0: this one does.
    """
    sampler: Any = batches  # torch asks for lists, and takes ranges
    return torch.utils.data.DataLoader(images, batch_sampler=sampler, num_workers=num_workers, collate_fn=_no_collate)


def _no_collate(batch: list[Any]) -> list[Any]:
    return batch
