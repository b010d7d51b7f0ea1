"""A described preprocessing on tensors, vectorised: images of one size, on their device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from ..runtime.transform import Transform


def apply_transform(transform: Transform, images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 (B, 3, H, W) to float32 (B, 3, *size), resizing with torchvision."""
    target = transform.resized(*images.shape[-2:])
    if target != tuple(images.shape[-2:]):
        mode = InterpolationMode(transform.interpolation)
        images = tvF.resize(images, list(target), interpolation=mode, antialias=True)
    if transform.crop is not None:
        images = _center_crop(transform, images, transform.crop)
    images = cut(transform, images).to(torch.float32)
    if transform.library == "transformers" and transform.rescale is not None and transform.mean is not None:
        # transformers folds the scale into mean and std; the same order of operations gives the same bits.
        mean, std = _constants(transform.mean, transform.std, 1.0 / transform.rescale, images.device)
        return images.sub_(mean).div_(std)
    if transform.rescale is not None:
        # timm divides by 255, which is not the same in the last bit as multiplying by 1/255.
        images = images.div_(255) if transform.library == "timm" else images.mul_(transform.rescale)
    if transform.mean is not None:
        mean, std = _constants(transform.mean, transform.std, 1.0, images.device)
        images = images.sub_(mean).div_(std)
    return images


def cut(transform: Transform, images: torch.Tensor) -> torch.Tensor:
    """Crop preprocessed images (..., H, W) to the window."""
    return images if transform.window is None else tvF.center_crop(images, list(transform.window))


def _center_crop(transform: Transform, images: torch.Tensor, crop: tuple[int, int]) -> torch.Tensor:
    (height, width), (crop_height, crop_width) = images.shape[-2:], crop
    if transform.library == "transformers" and height >= crop_height and width >= crop_width:
        # transformers rounds an odd margin down, torchvision rounds it to the even number.
        return tvF.crop(images, (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)
    return tvF.center_crop(images, list(crop))


@lru_cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], scale: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std times `scale`, float32 (3, 1, 1); cached, so that no call waits for a copy to the device."""
    # The dtype is explicit: while transformers loads a model in another thread, the default dtype is the model's.
    tensors = (torch.tensor(values, dtype=torch.float32, device=device) for values in (mean, std))
    scaled_mean, scaled_std = ((values * scale).view(-1, 1, 1) for values in tensors)
    return scaled_mean, scaled_std
