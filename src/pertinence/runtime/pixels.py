"""Preprocessing on the host, with Pillow and NumPy: the pixels that the full package computes with torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..utils.errors import PertinenceError, explain, shown
from ..utils.images import channels_first, check_unit_range, decode_rgb, open_image
from .transform import FAST, Transform


RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode(image: Any) -> np.ndarray:
    """Decode one image to RGB, uint8 (H, W, 3), as the full package does; nothing is downloaded.

    Args:
        image: path, bytes or open file of an image file, PIL image, or array (H, W), (H, W, C) or (C, H, W), uint8 or
            float in [0, 1].

    Raises:
        PertinenceError: it is not an image, or cannot be decoded.
    """
    if isinstance(image, (str, Path)):
        if not os.path.isfile(image):
            raise PertinenceError(f"{shown(str(image), 300)} cannot be read as an image (it is no file)")
        return _decode_file(image, shown(str(image), 300))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode_file(BytesIO(image), f"an image of {len(image):,} bytes")
    if hasattr(image, "read"):
        return _decode_file(image, "an open file")
    if isinstance(image, Image.Image):
        return decode_rgb(image)
    if not isinstance(image, np.ndarray):
        raise PertinenceError(
            f"expected an image (path, bytes, open file, PIL image, NumPy array), got {type(image).__name__}"
        )
    return np.ascontiguousarray(_to_uint8(channels_first(image)).transpose(1, 2, 0))


def differs_from_torch(transform: Transform, mode: str) -> bool:
    """Whether torchvision resizes the images of an expert, which Pillow does almost, but not quite, alike."""
    return transform.resize is not None and (transform.library == "transformers" or mode == FAST)


def host_pixels(transform: Transform, images: Sequence[np.ndarray]) -> np.ndarray:
    """Preprocess uint8 images (H, W, 3) of any sizes for an expert: float32 (b, 3, height, width).

    Raises:
        UnfitImage: an image would be resized to a very large one.
        PertinenceError: the expert has a processor of its own, which a `Transform` does not describe.
    """
    if transform.library == "own":
        raise PertinenceError("its preprocessing is code of its own, which is not here: use the full package")
    return _normalised(transform, np.stack([_shaped(transform, image) for image in images]))


def _shaped(transform: Transform, image: np.ndarray) -> np.ndarray:
    """Resize and crop an image, uint8 (H, W, 3)."""
    transform.check_image(*image.shape[:2])
    height, width = transform.resized(*image.shape[:2])
    if (height, width) != image.shape[:2]:
        resized = Image.fromarray(image).resize((width, height), RESAMPLING[transform.interpolation])
        image = np.asarray(resized)
    if transform.crop is not None:
        image = _center_crop(image, transform.crop, rounds_down=transform.library == "transformers")
    if transform.window is not None:
        image = _center_crop(image, transform.window)
    return image


def _normalised(transform: Transform, images: np.ndarray) -> np.ndarray:
    """Scale and normalise (b, H, W, 3), in the order of operations that gives the same bits as `experts.transforms`;
    the result has channels first."""
    values = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    scale = np.float32(1)
    if transform.library == "transformers" and transform.rescale is not None and transform.mean is not None:
        scale = np.float32(1.0 / transform.rescale)
    elif transform.rescale is not None and transform.library == "timm":
        values /= np.float32(255)
    elif transform.rescale is not None:
        values *= np.float32(transform.rescale)
    if transform.mean is not None:
        values -= (np.array(transform.mean, dtype=np.float32) * scale)[:, None, None]
        values /= (np.array(transform.std, dtype=np.float32) * scale)[:, None, None]
    return values


def _center_crop(image: np.ndarray, crop: tuple[int, int], rounds_down: bool = False) -> np.ndarray:
    """Cut the centre out of (H, W, 3), as torchvision does, which rounds an odd margin to the even number; or as
    transformers does, which rounds it down. What lies outside of the image is black."""
    missing = [max(want - have, 0) for want, have in zip(crop, image.shape[:2], strict=True)]
    if any(missing):
        image = np.pad(image, [*((one // 2, (one + 1) // 2) for one in missing), (0, 0)])
        rounds_down = False
    margins = [have - want for want, have in zip(crop, image.shape[:2], strict=True)]
    top, left = (margin // 2 if rounds_down else round(margin / 2) for margin in margins)
    return image[top : top + crop[0], left : left + crop[1]]


def _decode_file(source: Any, name: str) -> np.ndarray:
    try:
        with open_image(source) as opened:  # a path is closed even if decoding fails
            return decode_rgb(opened)
    except Exception as error:  # Pillow may raise anything: say which file and why
        reason = str(error) if isinstance(error, PertinenceError) else explain(error)
        raise PertinenceError(f"{name} cannot be read as an image ({reason})") from error


def _to_uint8(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise PertinenceError(f"images must be uint8, or float in [0, 1], got {image.dtype}")
    check_unit_range(float(image.min()), float(image.max()))
    return (image * 255).round().astype(np.uint8)
