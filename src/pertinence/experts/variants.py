"""Variants: cheaper experts made from the same checkpoint with a smaller input (input-resolution scaling)."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..runtime.transform import Transform
from ..utils.errors import PertinenceError, first_line
from .loading import Checkpoint, size_options
from .preprocessing import resize_transform, resolve_transform


SIZE_MODES = ("crop", "resize")
LEAST_SAVING = 0.1
"""Least share of pixels that a smaller input must save to be worth trying."""


def smaller_transform(
    checkpoint: Checkpoint, transform: Transform, image_size: int | None, by: str = "crop"
) -> Transform:
    """The transform of an expert with a smaller input; unchanged if `image_size` is None.

    Args:
        checkpoint: checkpoint of the expert.
        transform: transform of the checkpoint's own processor.
        image_size: side of the input in pixels.
        by: "crop": the centre of the original input; "resize": all of it, smaller.

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
    except Exception as error:  # an architecture may refuse the size with any error
        raise PertinenceError(
            f"it does not take images of {image_size} pixels, only of {transform.size[0]}x{transform.size[1]}: leave "
            f"image_size out ({first_line(error)})"
        ) from error
    return smaller


def possible_sizes(checkpoint: Checkpoint) -> list[int]:
    """Sides of smaller inputs that an architecture takes, falling: down to half of the original, in steps of its total
    stride, as sizes in between save nothing."""
    model, size = checkpoint.model, min(resolve_transform(checkpoint.processor).size)
    step = total_stride(model, size)
    sizes = range(size // step * step, math.ceil(size / 2) - 1, -step)
    return [smaller for smaller in sizes if (smaller / size) ** 2 <= 1 - LEAST_SAVING and _takes(model, smaller)]


def total_stride(model: nn.Module, size: int) -> int:
    """Stride, in pixels, of a network's coarsest feature map; a power of two."""
    extents = [size]

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if min(output.shape[-2:]) > 1:  # 1 x 1 maps are global pooling, not strides
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
    except Exception:  # an architecture may refuse the size with any error
        return False
    return True


@torch.no_grad()
def _run_zeros(model: nn.Module, size: tuple[int, int]) -> None:
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
    model(pixel_values=image, **size_options(model))
