"""How far preprocessing without torch agrees with that of an expert: measured on real images."""

from __future__ import annotations

import torch

from ..data.batches import Images
from ..runtime.exports import HostPixels
from ..runtime.pixels import differs_from_torch, host_pixels
from ..utils.errors import PertinenceError
from .expert import Expert


def measure_host_pixels(expert: Expert, images: Images) -> HostPixels | None:
    """Compare the pixels that Pillow and NumPy give with those of an expert's own preprocessing, and its answers.

    Args:
        expert: the expert, with its network in torch.
        images: uint8 images, see `Images`.

    Returns:
        The agreement; None if the pixels are the same by construction, or if only its own processor makes them, so
        that it does not run without torch.

    Raises:
        PertinenceError: there are no images.
    """
    transform = expert.entry.transform
    if not differs_from_torch(transform, expert.preprocessing) or transform.library == "own":
        return None
    if not len(images):
        raise PertinenceError("the agreement of pixels is measured on images, and there are none")
    equal, largest, same = 0.0, 0.0, 0
    for image in images:
        own = expert.preprocess([image.to(expert.device)]).float()
        host = torch.from_numpy(host_pixels(transform, [image.permute(1, 2, 0).contiguous().cpu().numpy()]))
        difference = (own.cpu() - host).abs()
        equal += (difference == 0).float().mean().item()
        largest = max(largest, difference.max().item())
        same += _answer(expert, own) == _answer(expert, host)
    return HostPixels(len(images), equal / len(images), largest, same / len(images))


def _answer(expert: Expert, pixels: torch.Tensor) -> int:
    with torch.inference_mode():
        logits, _ = expert.network.run(pixels)
    label_map = expert.entry.label_map
    return int((logits if label_map is None else logits[:, label_map]).argmax())
