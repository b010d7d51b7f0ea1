"""The preprocessing of an expert, described by resizing, cropping and normalisation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..utils.errors import PertinenceError, explain, shown
from ..utils.validation import is_number, is_whole


MAX_RESIZED_PIXELS = 2**26
EXACT, FAST = "exact", "fast"
PREPROCESSING_MODES = (EXACT, FAST)
"""exact: each expert receives the pixels of its own processor; fast: torchvision on uint8 for all."""
LIBRARIES = ("timm", "transformers", "own")
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""The interpolations of torchvision."""
MAX_SIDE = 2048
"""Largest side, in pixels, of an expert's input: an untrusted file must not claim more memory for a batch."""


class UnfitImage(PertinenceError):
    """An image that an expert cannot take.

    Attributes:
        size: (height, width) of the image.
    """

    def __init__(self, message: str, size: tuple[int, int]):
        super().__init__(message)
        self.size = size


@dataclass(frozen=True)
class Transform:
    """The preprocessing of an expert, as far as resize, centre crop, scale and normalisation describe it.

    Attributes:
        library: whose arithmetic to use: "timm" (PIL resizes; scale, then normalise), "transformers" (torchvision
            resizes; scale and normalisation in one step), or "own" (the other fields do not describe it: the processor
            itself is called).
        size: (height, width), in pixels, of the expert's input.
        resize: (height, width), or the shortest edge, or None.
        interpolation: interpolation of the resize, as torchvision names it.
        crop: (height, width) of the centre crop, or None.
        rescale: factor that uint8 values are multiplied by, or None.
        mean, std: mean and standard deviation of the normalisation, per channel, or None.
        window: (height, width) of a final centre crop of the processor's output, which makes the expert cheaper; or
            None.
        processor_size: (height, width) that the expert's own processor is set to, or None: as it was saved.
    """

    library: str
    size: tuple[int, int]
    resize: tuple[int, int] | int | None = None
    interpolation: str = "bilinear"
    crop: tuple[int, int] | None = None
    rescale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    window: tuple[int, int] | None = None
    processor_size: tuple[int, int] | None = None

    def __post_init__(self):
        if self.library not in LIBRARIES or self.interpolation not in INTERPOLATIONS:
            self._refuse("library", "interpolation")
        sizes = {name: getattr(self, name) for name in ("size", "resize", "crop", "window", "processor_size")}
        if is_whole(self.resize):
            sizes["resize"] = (self.resize, self.resize)
        for name, size in sizes.items():
            if not (size is None and name != "size") and not _is_size(size):
                self._refuse(name, expected=f", expected (height, width) from 1 to {MAX_SIDE}")
        constants = [value for value in (self.mean, self.std) if value is not None]
        if (self.mean is None) != (self.std is None) or not all(
            isinstance(value, tuple) and len(value) == 3 and all(map(is_number, value)) for value in constants
        ):
            self._refuse("mean", "std", expected=", expected three numbers each")
        if 0 in (self.std or ()) or not (self.rescale is None or (is_number(self.rescale) and self.rescale)):
            self._refuse("rescale", "std", expected=", expected none that are zero")

    def _refuse(self, *names: str, expected: str = "") -> None:
        values = ", ".join(f"{name} {shown(getattr(self, name))}" for name in names)
        raise PertinenceError(f"an expert's `transform` is malformed: {values}{expected}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Transform:
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise PertinenceError(f"an expert's `transform` is malformed ({explain(error)})") from error

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def is_smaller(self) -> bool:
        """Whether the expert's input is smaller than the one it was made for."""
        return self.window is not None or self.processor_size is not None

    def seen_through(self, size: int) -> Transform:
        """The same transform, followed by a centre crop of `size` x `size` pixels.

        Raises:
            PertinenceError: the input has fewer pixels.
        """
        self.check_smaller(size)
        return replace(self, size=(size, size), window=(size, size))

    def check_smaller(self, size: int) -> None:
        """Raise `PertinenceError` unless `size` is the side of a smaller square than the expert was made for."""
        if not isinstance(size, int) or not 0 < size < min(self.size):
            raise PertinenceError(
                f"image_size={size!r} must be a whole number below the {min(self.size)} pixels that the expert was "
                "made for"
            )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image after the resize."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = sorted((height, width))
        length = int(self.resize * long / short)
        return (self.resize, length) if height <= width else (length, self.resize)

    def check_image(self, height: int, width: int) -> None:
        """Raise `UnfitImage` if an image of (height, width) would be resized to a very large one.

        This happens if the shortest edge sets the size: resized to 224 pixels, 1 x 20,000 becomes 224 x 4,480,000.
        """
        if self.library == "own":  # assume that the shortest edge sets the size, with a margin for a crop
            pixels = 1.5 * self.size[0] * self.size[1] * max(height, width) / min(height, width)
        else:
            pixels = math.prod(self.resized(height, width))
        if pixels > MAX_RESIZED_PIXELS:
            raise UnfitImage(
                f"{height} x {width} pixels would be resized to about {pixels:,.0f}: crop it to a less narrow shape, "
                "or leave it out",
                (height, width),
            )


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_whole(side, 1, MAX_SIDE) for side in value)
