"""Cheaper experts from a checkpoint that is there: a smaller input."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..utils.errors import PertinenceError, first_line
from .loading import Checkpoint, size_options
from .preprocessing import resize_transform, resolve_transform
from .transforms import Transform


SIZE_MODES = ("crop", "resize")
LEAST_SAVING = 0.1
"""Share of the pixels that a smaller input must at least leave out to be worth a try."""


def smaller_transform(
    checkpoint: Checkpoint, transform: Transform, image_size: int | None, by: str = "crop"
) -> Transform:
    """What an expert does to an image that is given a smaller one; the same where `image_size` is None.

    Args:
        checkpoint: the expert's.
        transform: what the checkpoint's own processor does.
        image_size: pixels of a side.
        by: "crop": the middle of what the expert was made for; "resize": all of it, smaller.

    Raises:
        PertinenceError: the size is not smaller, or the architecture does not take such images.
    """
    if image_size is None:
        return transform
    if by not in SIZE_MODES:
        raise PertinenceError(f"image_size_by={by!r} is not one of {', '.join(SIZE_MODES)}")
    smaller = (
        transform.seen_through(image_size)
        if by == "crop"
        else resize_transform(transform, checkpoint.processor, image_size)
    )
    try:
        _run_zeros(checkpoint.model, smaller.size)
    except Exception as error:  # an architecture says in any way that it cannot do this
        raise PertinenceError(
            f"it does not take images of {image_size} pixels, only of {transform.size[0]}x{transform.size[1]}: leave "
            f"image_size out ({first_line(error)})"
        ) from error
    return smaller


def possible_sizes(checkpoint: Checkpoint) -> list[int]:
    """Sides of smaller images that an architecture takes, falling: from below the whole to the half, in steps of its
    total stride, between which nothing is gained."""
    model, size = checkpoint.model, min(resolve_transform(checkpoint.processor).size)
    step = total_stride(model, size)
    sizes = range(size // step * step, math.ceil(size / 2) - 1, -step)
    return [smaller for smaller in sizes if (smaller / size) ** 2 <= 1 - LEAST_SAVING and _takes(model, smaller)]


def total_stride(model: nn.Module, size: int) -> int:
    """Pixels of a side that one position of a network's coarsest convolution stands for, a power of two."""
    extents = [size]

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if min(output.shape[-2:]) > 1:  # 1 x 1 are summaries of the whole
            extents.append(min(output.shape[-2:]))

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        _run_zeros(model, (size, size))
    finally:
        for hook in hooks:
            hook.remove()
    return 2 ** round(math.log2(size / min(extents)))


def _takes(model: nn.Module, size: int) -> bool:
    try:
        _run_zeros(model, (size, size))
    except Exception:  # an architecture says in any way that it cannot do this
        return False
    return True


@torch.no_grad()
def _run_zeros(model: nn.Module, size: tuple[int, int]) -> None:
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
    model(pixel_values=image, **size_options(model))
