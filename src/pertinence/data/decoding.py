"""Decoding: images of any kind as uint8 tensors."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from huggingface_hub import get_session
from PIL import Image, ImageOps

from ..utils.errors import PertinenceError, explain, shown
from ..utils.images import channels_first, check_unit_range, decode_rgb, open_image


REMOTE, ARCHIVE = (
    re.compile(rf"({schemes})://") for schemes in ("https?|hf|s3|gs|gcs|abfs|az", "zip|tar|gzip|xz|bz2|zstd")
)
"""Where the path of a row of a data set may lead, besides a local file."""


def decode_image(image: Any) -> torch.Tensor:
    """Decode one image of any kind to an RGB uint8 tensor (3, H, W).

    Raises:
        PertinenceError: it is not an image, or cannot be decoded.
    """
    if isinstance(image, (str, Path)):
        try:
            source = image if os.path.isfile(image) else BytesIO(fetch(str(image)))
            with open_image(source) as opened:  # the file is closed even if decoding fails
                return decode_image(opened)
        except Exception as error:  # Pillow may raise anything: say which file and why
            reason = str(error) if isinstance(error, PertinenceError) else explain(error)
            raise PertinenceError(f"{shown(str(image), 300)} cannot be read as an image ({reason})") from error
    if isinstance(image, Image.Image):
        return torch.from_numpy(decode_rgb(image)).permute(2, 0, 1).contiguous()
    if isinstance(image, np.ndarray):
        try:
            image = torch.from_numpy(np.require(image, image.dtype.newbyteorder("="), ("C", "W")))
        except (TypeError, ValueError) as error:
            raise PertinenceError(f"an image cannot be made of an array of {image.dtype}: give uint8") from error
    if not isinstance(image, torch.Tensor):
        raise PertinenceError(f"expected an image (PIL, path, URL, numpy or torch array), got {type(image).__name__}")
    check_plain(image)
    return to_uint8(channels_first(image).contiguous())


def open_row(row: Mapping[str, Any], mode: str | None) -> Image.Image:
    """Open the image of a row; it is decoded here only if its column requires another mode.

    `datasets` would decode it at once: it would run PostScript, and wait for ever for a pipe.

    Args:
        row: content (`bytes`) or location (`path`), as `datasets.Image(decode=False)` gives them.
        mode: Pillow mode of the column, or None.

    Raises:
        PertinenceError: the row has no image, or its path leads neither to a file nor to an allowed location.
    """
    content, path = row.get("bytes"), row.get("path")
    if content is not None:
        opened = open_image(BytesIO(content))
    elif path is None:
        raise PertinenceError("the row has none")
    elif Path(path).is_file():
        opened = open_image(path)
    else:
        opened = open_image(BytesIO(_read_elsewhere(path)))
    return opened if mode in (None, opened.mode) else ImageOps.exif_transpose(opened).convert(mode)


def _read_elsewhere(path: str) -> bytes:
    """The content of a URL or of a file within an archive; nothing else is opened, as a device or a pipe may never
    end."""
    *inside, place = path.split("::")
    is_there = REMOTE.match(place) or (inside and Path(place).is_file())
    if not is_there or not all(map(ARCHIVE.match, inside)):
        raise PertinenceError(f"{shown(path)} is no file")
    if path.startswith(("http://", "https://")):
        return fetch(path)
    with fsspec.open(path) as file:
        return file.read()


def fetch(text: str) -> bytes:
    """The bytes of an image given as a URL or in base64, as transformers' `load_image` accepts them."""
    if text.startswith(("http://", "https://")):
        return get_session().get(text, follow_redirects=True).content
    try:
        text = text.partition(",")[2] if text.startswith("data:image/") else text
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise PertinenceError("it is no file, no URL, and no base64") from error


def as_images(images: Any) -> torch.Tensor | list[torch.Tensor]:
    """Convert any input that `forward` accepts to a uint8 batch (B, 3, H, W) or a list of uint8 tensors (3, H, W)."""
    if isinstance(images, torch.Tensor):
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            raise PertinenceError(
                f"expected at least one image as a batch (B, 3, H, W), got shape {tuple(images.shape)}"
            )
        check_plain(images)
        return to_uint8(images)
    if not isinstance(images, (list, tuple)):
        raise PertinenceError(
            f"expected the output of PertinenceImageProcessor or a tensor (B, 3, H, W), got {type(images).__name__}"
        )
    flat = [image for item in images for image in (item if isinstance(item, (list, tuple)) else [item])]
    if not flat:
        raise PertinenceError("got an empty batch: expected at least one image")
    for index, image in enumerate(flat):
        if not isinstance(image, torch.Tensor) or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            found = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
            raise PertinenceError(
                f"expected image tensors (3, H, W), got {found}: decode with PertinenceImageProcessor (image "
                f"{index} of {len(flat)})"
            )
        check_plain(image)
    return [to_uint8(image) for image in flat]


def check_plain(images: torch.Tensor) -> None:
    """Refuse tensors without values (on the meta device) and sparse tensors."""
    if images.layout != torch.strided or images.is_meta or images.is_nested:
        raise PertinenceError(f"images must be dense tensors with values, got {images.layout} on {images.device}")


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Convert float images in [0, 1] to uint8; uint8 images are returned unchanged."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise PertinenceError(f"images must be uint8, or float in [0, 1], got {images.dtype}")
    if images.itemsize == 1:  # torch has no arithmetic for 8-bit floats
        images = images.float()
    low, high = (value.item() for value in images.aminmax())
    check_unit_range(low, high)
    return (images * 255).round().to(torch.uint8)
