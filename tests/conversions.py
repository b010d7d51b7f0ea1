"""Networks of timm to convert, and whether an expert answers like one in all three libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from pertinence import Conversion, ConversionArguments, PertinenceError, convert_checkpoint
from pertinence.experts.expert import load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions


LABELS = {0: "cat", 1: "dog", 2: "fox"}


def network(architecture: str = "test_resnet", seed: int = 0, **options: Any) -> nn.Module:
    """A network of timm with random weights, whose logits differ between images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return shaken(timm.create_model(architecture, num_classes=3, **options), options.get("img_size", 160))


@torch.no_grad()
def shaken(module: nn.Module, size: int) -> nn.Module:
    """A network with every weight changed, and with the statistics that its activations have."""
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter) * parameter.std(correction=0).clamp(min=0.1))
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    module.train()(torch.randn(4, 3, size, size))
    return module.eval()


def convert(file: Path, **settings: Any) -> Conversion:
    given = {"labels": LABELS, "output_dir": str(file.parent / "expert"), **settings}
    return convert_checkpoint(file, ConversionArguments(**given))


def refusal(file: Path, **settings: Any) -> str:
    """The one line that says why a file is not converted; nothing is written."""
    before = sorted(file.parent.rglob("*"))
    with pytest.raises(PertinenceError) as refused:
        convert(file, **settings)
    assert sorted(file.parent.rglob("*")) == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


def picture() -> Image.Image:
    numbers = np.random.default_rng(3).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(numbers).resize((97, 80), Image.Resampling.BICUBIC)


@torch.no_grad()
def assert_answers_like(expected: nn.Module, folder: Path, **preprocessing: Any) -> None:
    """The folder gives the logits of a network that sees images as `preprocessing` says, in all three libraries."""
    transform = create_transform(**{"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_mode": "center", **preprocessing})
    pixels = transform(picture())[None]
    logits = expected(pixels)
    assert logits.std() > 1e-3
    model = AutoModelForImageClassification.from_pretrained(folder)
    inputs = AutoImageProcessor.from_pretrained(folder)(picture(), return_tensors="pt")
    torch.testing.assert_close(model(**inputs).logits, logits, rtol=0, atol=1e-5)
    assert model.config.id2label == LABELS
    of_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    theirs = create_transform(**resolve_data_config(model=of_timm))
    torch.testing.assert_close(of_timm(theirs(picture())[None]), logits, rtol=0, atol=1e-5)
    expert = load_expert(ExpertReference.parse(folder), LoadOptions())
    image = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1)[None]
    torch.testing.assert_close(expert(image)[0], logits, rtol=0, atol=1e-5)


SEEN = {"input_size": (3, 48, 48), "interpolation": "bilinear", "crop_pct": 0.9, "mean": (0.4, 0.5, 0.6)}
SHOWN = {"image_size": 48, "interpolation": "bilinear", "crop_pct": 0.9, "mean": [0.4, 0.5, 0.6], "std": [0.5]}
