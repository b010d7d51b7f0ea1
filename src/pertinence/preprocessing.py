"""Each expert's own preprocessing: resolved once into a small `Transform`, applied to uint8 images on their device.

In mode `exact` the pixels are, bit for bit, those of the expert's own processor: vectorised where that is possible
(nothing is resized, or the processor itself resizes with torchvision), through the processor elsewhere. In mode `fast`
torchvision resizes for all.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from .errors import PertinenceError, explain, shown
from .values import is_number, is_whole


Images = torch.Tensor | Sequence[torch.Tensor]
"""uint8 images: one tensor (B, 3, H, W), or B tensors (3, H, W) of any sizes."""


MAX_RESIZED_PIXELS = 2**26
LIBRARIES = ("timm", "transformers", "own")
MAX_SIDE = 2048
"""Pixels of a side that an expert may receive: beyond it a batch takes more memory than anybody's file may ask for."""


@dataclass(frozen=True)
class Transform:
    """What an expert does to an image, as far as resizing, centre crop, scale and normalisation describe it.

    Attributes:
        library: whose arithmetic: "timm" (PIL resizes; scale, then normalise), "transformers" (torchvision resizes;
            scale and normalisation in one), or "own" (not described by the other fields: the processor itself is
            called).
        size: (height, width) in pixels of what the expert receives.
        resize: (height, width), or the shortest edge, or None.
        interpolation: of the resize, as torchvision names it.
        crop: (height, width) of the centre crop, or None.
        rescale: factor that uint8 values are multiplied by, or None.
        mean, std: of the normalisation, per channel, or None.
        window: (height, width) of a last centre crop, of what the expert's own processor gives, or None: the expert
            then sees less than it was made for, and costs less.
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
        if self.library not in LIBRARIES or self.interpolation not in [mode.value for mode in InterpolationMode]:
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
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        except (TypeError, AttributeError) as error:
            raise PertinenceError(f"an expert's `transform` is malformed ({explain(error)})") from error

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def is_smaller(self) -> bool:
        """Whether the expert receives smaller images than it was made for."""
        return self.window is not None or self.processor_size is not None

    def seen_through(self, size: int) -> Transform:
        """The same, of which only the middle `size` x `size` pixels are kept.

        Raises:
            PertinenceError: there are not that many pixels.
        """
        self.check_smaller(size)
        return replace(self, size=(size, size), window=(size, size))

    def check_smaller(self, size: int) -> None:
        """Raise `PertinenceError` where `size` is not a smaller square than what the expert was made for."""
        if not isinstance(size, int) or not 0 < size < min(self.size):
            raise PertinenceError(
                f"image_size={size!r} must be a whole number below the {min(self.size)} pixels that the expert was "
                "made for"
            )

    def cut(self, images: torch.Tensor) -> torch.Tensor:
        """The window of images (..., H, W) that are otherwise ready."""
        return images if self.window is None else tvF.center_crop(images, list(self.window))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Size of an image of (height, width) after the resize."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = sorted((height, width))
        length = int(self.resize * long / short)
        return (self.resize, length) if height <= width else (length, self.resize)

    def check_image(self, height: int, width: int) -> None:
        """Raise `UnfitImage` where an image of (height, width) would be made a very large one.

        So it is where the shortest edge decides: 224 pixels of 1 x 20,000 are 224 x 4,480,000.
        """
        if self.library == "own":  # as if its shortest edge decided, with some more for a crop
            pixels = 1.5 * self.size[0] * self.size[1] * max(height, width) / min(height, width)
        else:
            pixels = math.prod(self.resized(height, width))
        if pixels > MAX_RESIZED_PIXELS:
            raise UnfitImage(
                f"{height} x {width} pixels would be resized to about {pixels:,.0f}: cut it to a less narrow shape, "
                "or leave it out",
                (height, width),
            )

    def _center_crop(self, images: torch.Tensor) -> torch.Tensor:
        (height, width), (crop_height, crop_width) = images.shape[-2:], self.crop
        if self.library == "transformers" and height >= crop_height and width >= crop_width:
            # transformers rounds an odd margin down, torchvision to the even number.
            return tvF.crop(images, (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)
        return tvF.center_crop(images, list(self.crop))

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) to float32 (B, 3, *size), resizing with torchvision."""
        target = self.resized(*images.shape[-2:])
        if target != tuple(images.shape[-2:]):
            mode = InterpolationMode(self.interpolation)
            images = tvF.resize(images, list(target), interpolation=mode, antialias=True)
        if self.crop is not None:
            images = self._center_crop(images)
        images = self.cut(images).to(torch.float32)
        if self.library == "transformers" and self.rescale is not None and self.mean is not None:
            # transformers folds the scale into mean and std; the same order of operations gives the same bits.
            mean, std = _constants(self.mean, self.std, 1.0 / self.rescale, images.device)
            return images.sub_(mean).div_(std)
        if self.rescale is not None:
            # timm divides by 255, which is not the same in the last bit as multiplying by 1/255.
            images = images.div_(255) if self.library == "timm" else images.mul_(self.rescale)
        if self.mean is not None:
            mean, std = _constants(self.mean, self.std, 1.0, images.device)
            images = images.sub_(mean).div_(std)
        return images


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_whole(side, 1, MAX_SIDE) for side in value)


@lru_cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], scale: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std times `scale`, float32 (3, 1, 1): made once, so that nothing waits for a device."""
    # The dtype is said: while transformers loads a model in another thread the default is that of the model.
    tensors = (torch.tensor(values, dtype=torch.float32, device=device) for values in (mean, std))
    return tuple((values * scale).view(-1, 1, 1) for values in tensors)


class Preprocessor:
    """Turns uint8 images into what one expert receives.

    Args:
        transform: what the processor does, from `resolve_transform`.
        processor: the expert's own image processor.
        mode: "exact" or "fast".
    """

    def __init__(self, transform: Transform, processor: Any, mode: str = "exact"):
        if transform.processor_size is not None:
            processor = resized_processor(processor, transform.processor_size)
        self.transform, self.processor, self.mode = transform, processor, mode

    def __call__(self, images: Images) -> torch.Tensor:
        """uint8 images, B of them, to float32 (B, 3, height, width) on the device of the images."""
        return by_shape(images, self._apply)

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        self.transform.check_image(*images.shape[-2:])
        if self.is_vectorised(*images.shape[-2:]):
            return self.transform.apply(images)
        try:
            pixel_values = run_processor(self.processor, images)
        except Exception as error:  # somebody's settings of somebody's processor
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise
            raise PertinenceError(
                f"an expert's {type(self.processor).__name__} fails on images of shape {tuple(images.shape)} "
                f"({explain(error)})"
            ) from error
        return self.transform.cut(pixel_values)

    def is_vectorised(self, height: int, width: int) -> bool:
        """Whether images of this size are transformed as one tensor rather than one by one."""
        if self.transform.library == "own":
            return False
        if self.mode == "fast" or self.transform.library == "transformers":
            return True
        return self.transform.resized(height, width) == (height, width)


def by_shape(images: Images, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply a function of (b, 3, H, W) tensors to images of any sizes, in groups of one shape; keep the order."""
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


class UnfitImage(PertinenceError):
    """An image that an expert cannot be given.

    Attributes:
        size: (height, width) of the image.
    """

    def __init__(self, message: str, size: tuple[int, int]):
        super().__init__(message)
        self.size = size


STACKED_BYTES = 2**28
"""Images of one size are put into one tensor up to this size: above it the copy costs more than it saves."""


def stacked(images: Images) -> Images:
    """Images of one size as one tensor, so that some of them are gathered at once; others as they are."""
    if isinstance(images, torch.Tensor):
        return images
    first = images[0]
    if len(images) == 1:
        return first.unsqueeze(0)
    size = sum(image.nbytes for image in images)
    same = all(image.shape == first.shape and image.device == first.device for image in images)
    return torch.stack(list(images)) if same and size <= STACKED_BYTES else images


def take(images: Images, rows: torch.Tensor) -> Images:
    """Some of the images; rows rising, int64 (b,), on the CPU."""
    if len(rows) == len(images):
        return images
    if isinstance(images, torch.Tensor):
        return images[rows.to(images.device, non_blocking=True)]
    return [images[row] for row in rows.tolist()]


def run_processor(processor: Any, images: torch.Tensor) -> torch.Tensor:
    """Call an expert's own image processor on uint8 images (B, 3, H, W)."""
    if is_timm_processor(processor):
        inputs = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
        pixel_values = processor(inputs, return_tensors="pt")["pixel_values"]
    else:
        inputs = list(images.cpu().numpy()) if getattr(processor, "backend", "") == "pil" else list(images)
        pixel_values = processor(images=inputs, return_tensors="pt", input_data_format="channels_first")[
            "pixel_values"
        ]
    return pixel_values.to(images.device, torch.float32)


def resize_transform(transform: Transform, processor: Any, size: int) -> Transform:
    """The transform of an expert that sees all of an image, at `size` x `size` pixels.

    Raises:
        PertinenceError: the size is not smaller, or the processor cannot be set to it.
    """
    transform.check_smaller(size)
    smaller = resolve_transform(resized_processor(processor, (size, size)))
    if smaller.size != (size, size):
        raise PertinenceError(
            f"its {type(processor).__name__} gives {smaller.size[0]}x{smaller.size[1]} pixels when set to {size}: "
            "leave image_size_by out to cut the middle out instead"
        )
    return replace(smaller, processor_size=(size, size))


def resized_processor(processor: Any, size: tuple[int, int]) -> Any:
    """A copy of an expert's own image processor, set to make images of (height, width) as its library would."""
    if is_timm_processor(processor):
        from timm.data import create_transform

        smaller = copy.copy(processor)
        smaller.data_config = {**processor.data_config, "input_size": (3, *size)}
        smaller.val_transforms = create_transform(**smaller.data_config, is_training=False)
        return smaller
    smaller = copy.deepcopy(processor)
    made = run_processor(processor, _probe(256, 256)).shape[-2:]
    wanted = {"height": size[0], "width": size[1]}
    edge = getattr(smaller, "do_resize", False) and smaller.size.get("shortest_edge")
    smaller.do_resize = True
    smaller.size = type(smaller.size)(**({"shortest_edge": round(edge * size[0] / made[0])} if edge else wanted))
    if getattr(smaller, "do_center_crop", False):
        if not edge:  # what is cut out keeps its share of what is resized
            smaller.size = type(smaller.size)(
                **{side: round(processor.size[side] * size[0] / made[0]) for side in ("height", "width")}
            )
        smaller.crop_size = type(smaller.crop_size)(**wanted)
    return smaller


def is_timm_processor(processor: Any) -> bool:
    return type(processor).__name__ == "TimmWrapperImageProcessor"


def resolve_transform(processor: Any) -> Transform:
    """Describe an image processor as a `Transform`; library "own" where the description would not give the same
    pixels.

    The description is not believed: it is compared with the processor on small images of three shapes.
    """
    described = _describe_timm(processor) if is_timm_processor(processor) else _describe_transformers(processor)
    if described is not None and _gives_same_pixels(described, processor):
        return described
    return Transform(library="own", size=tuple(run_processor(processor, _probe(256, 256)).shape[-2:]))


def _describe_timm(processor: Any) -> Transform | None:
    steps: dict[str, Any] = {"library": "timm"}
    for step in processor.val_transforms.transforms:
        name = type(step).__name__
        if name == "Resize" and step.max_size is None:
            size = step.size
            steps["resize"] = int(size) if isinstance(size, int) else tuple(size) if len(size) == 2 else int(size[0])
            steps["interpolation"] = step.interpolation.value
        elif name == "CenterCrop":
            steps["crop"] = tuple(step.size)
        elif name in ("ToTensor", "MaybeToTensor"):
            steps["rescale"] = 1 / 255
        elif name == "Normalize":
            steps["mean"], steps["std"] = (tuple(torch.as_tensor(v).flatten().tolist()) for v in (step.mean, step.std))
        else:
            return None
    size = steps.get("crop") or steps.get("resize")
    return Transform(size=size, **steps) if isinstance(size, tuple) else None


def _describe_transformers(processor: Any) -> Transform | None:
    from transformers.image_processing_backends import TorchvisionBackend, pil_torch_interpolation_mapping

    if not isinstance(processor, TorchvisionBackend):
        return None
    steps: dict[str, Any] = {"library": "transformers"}
    if processor.do_resize:
        height, width, shortest = (processor.size.get(key) for key in ("height", "width", "shortest_edge"))
        if not (height and width) and not shortest:
            return None
        steps["resize"] = (height, width) if height and width else shortest
        steps["interpolation"] = pil_torch_interpolation_mapping[processor.resample].value
    if processor.do_center_crop:
        steps["crop"] = (processor.crop_size["height"], processor.crop_size["width"])
    if processor.do_rescale:
        steps["rescale"] = processor.rescale_factor
    if processor.do_normalize:
        steps["mean"], steps["std"] = tuple(processor.image_mean), tuple(processor.image_std)
    size = steps.get("crop") or steps.get("resize")
    return Transform(size=size, **steps) if isinstance(size, tuple) else None


def _gives_same_pixels(transform: Transform, processor: Any) -> bool:
    height, width = transform.resize if isinstance(transform.resize, tuple) else (transform.resize or 64,) * 2
    shapes = [(height, width)]
    if transform.library == "transformers":
        shapes += [(height + 13, 2 * width + 5), (2 * height + 5, width // 2 + 3)]
    return all(torch.equal(transform.apply(_probe(*s)), run_processor(processor, _probe(*s))) for s in shapes)


def _probe(height: int, width: int) -> torch.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (1, 3, height, width), dtype=np.uint8)
    return torch.from_numpy(values)
