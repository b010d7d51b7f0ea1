"""Networks of torchvision for which timm has a counterpart, and whether two networks answer alike."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...utils.errors import PertinenceError, explain


AGREEMENT = 1e-5
"""Largest difference between logits that are called equal."""

_EPS = {"bn_eps": 1e-3}
_REGNETS = {
    f"regnet_{kind}_{size}": f"regnet{kind}_{number}"
    for kind in "xy"
    for size, number in {
        "400mf": "004", "800mf": "008", "1_6gf": "016", "3_2gf": "032", "8gf": "080", "16gf": "160", "32gf": "320",
        "128gf": "1280",
    }.items()
}  # fmt: skip
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (other, {}) for name, other in _REGNETS.items()},
    "regnet_x_400mf": ("regnetx_004_tv", {}),
    "regnet_y_800mf": ("regnety_008_tv", {}),
    "regnet_y_8gf": ("regnety_080_tv", {}),
    "mobilenet_v2": ("mobilenetv2_100", {}),
    "mobilenet_v3_large": ("mobilenetv3_large_100", _EPS),
    "mobilenet_v3_small": ("mobilenetv3_small_100", _EPS),
    "mnasnet0_5": ("mnasnet_050", {}),
    "mnasnet0_75": ("mnasnet_075", {}),
    "mnasnet1_0": ("mnasnet_100", {}),
    **{f"efficientnet_b{size}": (f"efficientnet_b{size}", _EPS if size > 4 else {}) for size in range(8)},
    **{f"efficientnet_v2_{size}": (f"efficientnetv2_{size}", _EPS) for size in "sml"},
    "swin_t": ("swin_tiny_patch4_window7_224", {}),
    "swin_s": ("swin_small_patch4_window7_224", {}),
    "swin_b": ("swin_base_patch4_window7_224", {}),
    "vit_b_16": ("vit_base_patch16_224", {}),
    "vit_b_32": ("vit_base_patch32_224", {}),
    "vit_l_16": ("vit_large_patch16_224", {}),
    "vit_l_32": ("vit_large_patch32_224", {}),
    "vit_h_14": ("vit_huge_patch14_224", {}),
}
"""Counterparts in timm, and the options that make them equal, of the networks that are not called alike."""


@dataclass(frozen=True)
class Counterpart:
    """A network of torchvision and the one of timm that may be equal to it: their names, and options of timm's."""

    name: str
    timm_name: str
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        """Torchvision's network, with random weights."""
        from torchvision.models import get_model

        options: dict[str, Any] = {"image_size": image_size} if self.name.startswith("vit_") else {}
        if self.name == "inception_v3":  # takes minutes otherwise
            options = {"init_weights": False}
        return get_model(self.name, weights=None, num_classes=num_classes, **options)

    def preprocessing(self) -> dict[str, Any]:
        """The preprocessing of torchvision's first weights of this network, as timm calls it."""
        from torchvision.models import get_model_weights

        steps = next(iter(get_model_weights(self.name))).transforms()
        (crop,), (resize,) = steps.crop_size, steps.resize_size
        return {
            "input_size": (3, crop, crop),
            "crop_pct": crop / resize,
            "interpolation": steps.interpolation.value,
            "mean": tuple(steps.mean),
            "std": tuple(steps.std),
        }


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers."""
    from torchvision import models

    return models.list_models(module=models)


def counterparts(name: str) -> list[Counterpart]:
    """The networks of torchvision that a name of torchvision or of timm may mean."""
    known = torchvision_names()
    if name in known:
        timm_name, options = NAMES.get(name, (name, {}))
        return [Counterpart(name, timm_name, options)]
    bare = re.sub(r"_\d{3}$", "", name)  # vit_base_patch16_384 is the same network for other images
    return [
        Counterpart(theirs, name, options)
        for theirs, (ours, options) in NAMES.items()
        if theirs in known and (ours == name or re.sub(r"_\d{3}$", "", ours) == bare != name)
    ]


def answer_alike(one: nn.Module, other: nn.Module, image_size: int) -> bool:
    """Whether two networks give the same logits, compared in double precision; both are in float32 afterwards."""
    pixels = torch.randn(2, 3, image_size, image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        first, second = (logits_of(network.eval().double(), pixels) for network in (one, other))
    finally:
        one.float(), other.float()
    # Logits that hardly differ between classes must agree more closely.
    return bool((first - second).abs().max() <= AGREEMENT * min(1.0, first.std().item()))


@torch.no_grad()
def logits_of(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Logits (B, C) of pixels (B, 3, height, width); raises `PertinenceError` for images that are too small."""
    try:
        return network(pixels)
    except (RuntimeError, ValueError, AssertionError) as error:
        height, width = pixels.shape[-2:]
        raise PertinenceError(
            f"{type(network).__name__} does not take images of {height} x {width} pixels ({explain(error)}): give the "
            "--image-size that it was trained with"
        ) from error
