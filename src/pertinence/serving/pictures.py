"""From the bytes of an image file to a tensor: of known formats only, and only if the header promises few pixels."""

from __future__ import annotations

import warnings
from io import BytesIO

import torch
from PIL import Image

from ..data.decoding import decode_image
from .refusals import Refusal


MAX_RATIO = 20
"""How many times as long as wide an image may be: experts resize the shorter side, and a line would become huge."""
SMALL = 2**15
"""An image of so many pixels is decoded in less time than it takes to hand it to another thread."""


def open_picture(content: bytes, formats: list[str], max_pixels: int) -> Image.Image:
    """Open an image file without decoding it.

    Raises:
        Refusal: it is no image, of another format, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about what is checked below
            opened = Image.open(BytesIO(content), formats=formats)
    except Image.DecompressionBombError:
        raise _too_large(max_pixels) from None
    except Exception:  # Pillow may raise anything
        raise Refusal(
            415, "image", f"the file is no image that can be read: send one as {', '.join(formats)}"
        ) from None
    width, height = opened.size
    if width * height > max_pixels:
        raise _too_large(max_pixels, f", this one has {width} x {height}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise Refusal(422, "pixels", f"an image is at most {MAX_RATIO} times as long as wide, not {width} x {height}")
    return opened


def decode_picture(opened: Image.Image) -> torch.Tensor:
    """Decode an image: uint8 (3, H, W).

    Raises:
        Refusal: its content is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode_image(opened)
    except Exception:  # Pillow may raise anything
        raise Refusal(400, "image", "the image is damaged or not complete: send the whole file") from None


def is_small(opened: Image.Image) -> bool:
    """Whether an image is decoded at once."""
    return opened.width * opened.height <= SMALL


def _too_large(max_pixels: int, found: str = "") -> Refusal:
    return Refusal(413, "pixels", f"an image has at most {max_pixels / 1e6:g} million pixels{found}")
