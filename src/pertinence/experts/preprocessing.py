"""Each expert's own preprocessing: resolved once into a small `Transform`, applied to uint8 images on their device.

In mode `exact` the pixels are, bit for bit, those of the expert's own processor: vectorised where possible (nothing is
resized, or the processor itself resizes with torchvision), otherwise by calling the processor. In mode `fast`
torchvision resizes all images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.batches import Images, by_shape
from ..runtime.pixels import host_pixels
from ..runtime.transform import Transform
from ..utils.errors import MALFORMED, PertinenceError, explain
from .transforms import apply_transform, cut


PROBE_SIDE = 256
"""Side of the square image, in pixels, that shows the size of an expert's input."""
PROBED = ((PROBE_SIDE, PROBE_SIDE), (97, 160), (160, 97), (320, 240))
"""Sizes of images that show whether the size of an expert's input depends on them."""


class Preprocessor:
    """Turns uint8 images into the input of one expert's network.

    Args:
        transform: description of the processor, from `resolve_transform`.
        processor: the expert's own image processor; None for a graph, unless only its processor knows its pixels.
        mode: "exact" or "fast".
    """

    def __init__(self, transform: Transform, processor: Any, mode: str = "exact"):
        if transform.processor_size is not None and processor is not None:
            processor = resized_processor(processor, transform.processor_size)
        self.transform, self.processor, self.mode = transform, processor, mode

    def __call__(self, images: Images) -> torch.Tensor:
        """Convert B uint8 images to float32 (B, 3, height, width) on their device.

        Raises:
            PertinenceError: the results have several sizes.
        """
        first, *others = self.batches(images)
        if others:
            sizes = ", ".join(f"{pixels.shape[-2]}x{pixels.shape[-1]}" for pixels in (first, *others))
            raise PertinenceError(f"its {type(self.processor).__name__} gives images of several sizes: {sizes}")
        return first

    def batches(self, images: Images) -> Iterator[torch.Tensor]:
        """The same in as few tensors as the order of the images allows, each of one size."""
        return by_shape(images, self._apply)

    @cached_property
    def has_fixed_size(self) -> bool:
        """Whether the results have one size, whatever the size of an image."""
        if self.transform.library != "own" or self.transform.window is not None:
            return True
        shapes = set()
        for size in PROBED:
            with suppress(PertinenceError):  # images of this shape are refused when they come
                shapes.add(self._run(_probe(*size)).shape)
        return len(shapes) == 1

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        self.transform.check_image(*images.shape[-2:])
        if self.is_vectorised(*images.shape[-2:]):
            return apply_transform(self.transform, images)
        return cut(self.transform, self._run(images))

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        """What the processor itself makes of images of one size."""
        if self.processor is None:  # a graph comes without one: its resize is that of Pillow, as in the processor
            arrays = list(images.permute(0, 2, 3, 1).cpu().numpy())
            return torch.from_numpy(host_pixels(self.transform, arrays)).to(images.device)
        try:
            return run_processor(self.processor, images)
        except Exception as error:  # a processor may fail in any way
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise
            raise PertinenceError(
                f"its {type(self.processor).__name__} fails on images of shape {tuple(images.shape)} "
                f"({explain(error)})"
            ) from error

    def is_vectorised(self, height: int, width: int) -> bool:
        """Whether images of this size are transformed as one tensor, rather than one by one."""
        if self.transform.library == "own":
            return False
        if self.mode == "fast" or self.transform.library == "transformers":
            return True
        return self.transform.resized(height, width) == (height, width)


def run_processor(processor: Any, images: torch.Tensor) -> torch.Tensor:
    """Call an expert's own image processor on uint8 images (B, 3, H, W)."""
    return _outputs_of(processor, images)["pixel_values"].to(images.device, torch.float32)


def _outputs_of(processor: Any, images: torch.Tensor) -> Any:
    if is_timm_processor(processor) or not is_of_transformers(processor):
        # Code of others is given what a pipeline gives: it need not know images whose channels come first.
        return processor(
            [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()], return_tensors="pt"
        )
    inputs = list(images.cpu().numpy()) if getattr(processor, "backend", "") == "pil" else list(images)
    return processor(images=inputs, return_tensors="pt", input_data_format="channels_first")


def resize_transform(transform: Transform, processor: Any, size: int) -> Transform:
    """The transform of an expert that receives the whole image resized to `size` x `size` pixels.

    Raises:
        PertinenceError: the size is not smaller, or the processor does not support it.
    """
    transform.check_smaller(size)
    smaller = resolve_transform(resized_processor(processor, (size, size)))
    if smaller.size != (size, size):
        raise PertinenceError(
            f"its {type(processor).__name__} gives {smaller.size[0]}x{smaller.size[1]} pixels when set to {size}: "
            "leave image_size_by out to crop the centre instead"
        )
    return replace(smaller, processor_size=(size, size))


def resized_processor(processor: Any, size: tuple[int, int]) -> Any:
    """A copy of an expert's own image processor that returns images of (height, width)."""
    if is_timm_processor(processor):
        from timm.data import create_transform

        smaller = copy.copy(processor)
        smaller.data_config = {**processor.data_config, "input_size": (3, *size)}
        smaller.val_transforms = create_transform(**smaller.data_config, is_training=False)
        return smaller
    smaller = copy.deepcopy(processor)
    made = run_processor(processor, _probe(PROBE_SIDE, PROBE_SIDE)).shape[-2:]
    wanted = {"height": size[0], "width": size[1]}
    edge = getattr(smaller, "do_resize", False) and smaller.size.get("shortest_edge")
    smaller.do_resize = True
    smaller.size = type(smaller.size)(**({"shortest_edge": round(edge * size[0] / made[0])} if edge else wanted))
    if getattr(smaller, "do_center_crop", False):
        if not edge:  # the crop keeps its share of the resized image
            smaller.size = type(smaller.size)(
                **{side: round(processor.size[side] * size[0] / made[0]) for side in ("height", "width")}
            )
        smaller.crop_size = type(smaller.crop_size)(**wanted)
    return smaller


def is_timm_processor(processor: Any) -> bool:
    return type(processor).__name__ == "TimmWrapperImageProcessor"


def is_of_transformers(processor: Any) -> bool:
    """Whether a processor is a part of transformers, so that it needs no other code."""
    return type(processor).__module__.startswith("transformers.")


def resolve_transform(processor: Any, side: int = PROBE_SIDE) -> Transform:
    """Describe an image processor as a `Transform`; with library "own" if no description gives the same pixels.

    The description is verified: it is compared with the processor on small images of three shapes.

    Args:
        processor: the expert's own image processor.
        side: of the square image, in pixels, whose result is the size of the expert's input, where it is not fixed.

    Raises:
        PertinenceError: it gives no images, or more than images.
    """
    try:
        outputs = _outputs_of(processor, _probe(side, side))
        _check_outputs(processor, outputs)
        described = _described(processor)
        if described is not None and _gives_same_pixels(described, processor):
            return described
        return Transform(library="own", size=tuple(outputs["pixel_values"].shape[-2:]))
    except Exception as error:  # a processor may fail in any way
        if isinstance(error, (PertinenceError, MemoryError, torch.OutOfMemoryError)):
            raise
        raise PertinenceError(f"its {type(processor).__name__} gives no images ({explain(error)})") from error


def _check_outputs(processor: Any, outputs: Any) -> None:
    """Refuse what is not one image of three channels, and what a network needs besides (masks, shapes of patches)."""
    shape = tuple(getattr(outputs.get("pixel_values"), "shape", ()))
    others = [name for name in outputs if name != "pixel_values"]
    if len(shape) != 4 or shape[:2] != (1, 3):
        given = ", ".join([f"pixel_values of shape {shape}" if shape else "no pixel_values", *others])
        raise PertinenceError(
            f"its {type(processor).__name__} gives no images but {given}, expected pixel_values of shape (1, 3, "
            "height, width) for one image"
        )
    if others:
        raise PertinenceError(
            f"its {type(processor).__name__} gives {', '.join(others)} besides images: only networks that need "
            "nothing else than images can be experts"
        )


def _described(processor: Any) -> Transform | None:
    """A description of a processor, which may be wrong; None if there is none."""
    if is_timm_processor(processor):
        return _describe_timm(processor)
    # What others wrote may depend on what an image shows, which no comparison on a few images would find.
    if not is_of_transformers(processor):
        return None
    try:
        return _describe_transformers(processor)
    except (*MALFORMED, PertinenceError):  # settings of a kind that a `Transform` does not have
        return None


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
    settings: Any = processor  # transformers declares no types for the settings
    steps: dict[str, Any] = {"library": "transformers"}
    if settings.do_resize:
        height, width, shortest = (settings.size.get(key) for key in ("height", "width", "shortest_edge"))
        if not (height and width) and not shortest:
            return None
        steps["resize"] = (height, width) if height and width else shortest
        steps["interpolation"] = pil_torch_interpolation_mapping[settings.resample].value
    if settings.do_center_crop:
        steps["crop"] = (settings.crop_size["height"], settings.crop_size["width"])
    if settings.do_rescale:
        steps["rescale"] = settings.rescale_factor
    if settings.do_normalize:
        steps["mean"], steps["std"] = map(_by_channel, (settings.image_mean, settings.image_std))
    size = steps.get("crop") or steps.get("resize")
    return Transform(size=size, **steps) if isinstance(size, tuple) else None


def _by_channel(statistics: Any) -> tuple[float, ...]:
    """Mean or standard deviation of three channels, which may be given as one number for all."""
    values = tuple(statistics) if isinstance(statistics, (list, tuple)) else (statistics,)
    return values * 3 if len(values) == 1 else values


def _gives_same_pixels(transform: Transform, processor: Any) -> bool:
    height, width = transform.resize if isinstance(transform.resize, tuple) else (transform.resize or 64,) * 2
    shapes = [(height, width)]
    if transform.library == "transformers":
        shapes += [(height + 13, 2 * width + 5), (2 * height + 5, width // 2 + 3)]
    probes = [_probe(*shape) for shape in shapes]
    return all(torch.equal(apply_transform(transform, one), run_processor(processor, one)) for one in probes)


def _probe(height: int, width: int) -> torch.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (1, 3, height, width), dtype=np.uint8)
    return torch.from_numpy(values)
