"""Images as Pillow and NumPy give them: opened without running programs, decoded to RGB, laid out channels first."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from .errors import PertinenceError, explain


logger = logging.getLogger(__name__)


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """Open an image file without decoding it; raises `PertinenceError` for PostScript."""
    opened = Image.open(source)
    _refuse_programs(opened)
    return opened


def decode_rgb(image: Image.Image) -> np.ndarray:
    """Decode an image to RGB, turned upright: uint8 (H, W, 3).

    Raises:
        PertinenceError: it cannot be decoded, or is PostScript.
    """
    try:
        _refuse_programs(image)
        if image.mode.startswith(("I", "F")) and np.max(image.getextrema()) > 255:
            warn_of_depth()
        # As in transformers' `load_image`, so that an expert sees the same pixels as when it is used alone.
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # Pillow may raise anything
        raise PertinenceError(f"an image cannot be decoded ({explain(error)}): replace it or leave it out") from error


def channels_first(image: Any) -> Any:
    """An image of 1, 3 or 4 channels, an array or a tensor (H, W) or (H, W, C) or (C, H, W), as RGB (3, H, W).

    Raises:
        PertinenceError: it has another shape.
    """
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or 0 in image.shape or (image.shape[0] not in (1, 3, 4) and image.shape[-1] not in (1, 3, 4)):
        raise PertinenceError(f"expected an image of 1, 3 or 4 channels, got an array of shape {tuple(image.shape)}")
    # An image that is four pixels high is not one of four channels.
    if image.shape[0] not in (1, 3, 4) or (image.shape[0] == 4 and image.shape[-1] in (1, 3)):
        image = image.swapaxes(0, 2).swapaxes(1, 2)
    return image[:3] if image.shape[0] != 1 else image[[0, 0, 0]]


def check_unit_range(low: float, high: float) -> None:
    """Raise `PertinenceError` unless the values of a float image, from `low` to `high`, lie in [0, 1]."""
    if not (low >= 0 and high <= 1):
        raise PertinenceError(
            f"float images must lie in [0, 1], got values from {low:.3g} to {high:.3g}: pass images as they are, "
            "every expert normalises them itself"
        )


def _refuse_programs(image: Image.Image) -> None:
    if image.format == "EPS":
        raise PertinenceError("an EPS file is a program, which Pillow would have run")


@cache
def warn_of_depth() -> None:
    """Say once that what lies above 8 bits is lost."""
    logger.warning(
        "An image has more than 8 bits a channel: what lies above 255 is cut off, as transformers does. Scale such "
        "images down before."
    )
