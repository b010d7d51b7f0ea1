"""Whether an expert that was written gives the logits of the network that it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from ...utils.errors import PertinenceError, explain
from ..expert import load_expert
from ..reference import ExpertReference, LoadOptions
from .timm_networks import TimmNetwork
from .torchvision_networks import AGREEMENT, logits_of


SAMPLES = ((1.0, 1.0), (1.2, 1.6), (2.1, 1.3))
"""Height and width of the sample images, as multiples of the network's own."""


@torch.inference_mode()
def check_written(folder: Path, network: TimmNetwork, steps: dict[str, Any], labels: list[str]) -> float:
    """The largest difference of logits between the network in memory and the folder as three libraries load it.

    Raises:
        PertinenceError: a library cannot load it, or answers differently.
    """
    images = _sample_images(*steps["input_size"][1:])
    transform = create_transform(**steps, is_training=False)
    expected = torch.cat([logits_of(network.module, transform(image)[None]) for image in images])
    if not expected.isfinite().all():
        raise PertinenceError("the weights in the file give NaN or infinite scores: take those of an earlier epoch")
    # Logits that hardly differ between classes must agree more closely.
    largest, tolerance = 0.0, AGREEMENT * min(1.0, expected.std().item())
    for library, answers in {"transformers": _transformers, "timm": _timm, "pertinence": _own}.items():
        try:
            with quiet():
                logits, names = answers(folder, images)
        except Exception as error:  # libraries raise anything
            reason = str(error) if isinstance(error, PertinenceError) else explain(error)
            raise PertinenceError(f"{library} cannot load timm's {network.architecture} as saved: {reason}") from error
        difference = (logits - expected).abs().max().item() if logits.shape == expected.shape else np.inf
        agrees = logits.shape == expected.shape and torch.allclose(logits, expected, rtol=AGREEMENT, atol=tolerance)
        if not agrees or names not in (None, labels):
            raise PertinenceError(
                f"{library} gives other answers with timm's {network.architecture} as saved than the network with the "
                f"file's weights (logits differ by {difference:.1g}), so it is not converted"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and warnings, which are about files that the user has not loaded."""
    level, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bars:
            logging.enable_progress_bar()


def _sample_images(height: int, width: int) -> list[Image.Image]:
    """Coloured blobs of several shapes, the same each time."""
    numbers = np.random.default_rng(0)
    coarse = [Image.fromarray(numbers.integers(0, 256, (7, 7, 3), dtype=np.uint8)) for _ in SAMPLES]
    sizes = [(round(width * across), round(height * down)) for down, across in SAMPLES]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(coarse, sizes, strict=True)]


def _transformers(folder: Path, images: list[Image.Image]) -> tuple[torch.Tensor, list[str] | None]:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    logits = torch.cat([model(**processor(image, return_tensors="pt")).logits for image in images])
    return logits, [model.config.id2label[index] for index in range(model.config.num_labels)]


def _timm(folder: Path, images: list[Image.Image]) -> tuple[torch.Tensor, list[str] | None]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model), is_training=False)
    return torch.cat([model(transform(image)[None]) for image in images]), None


def _own(folder: Path, images: list[Image.Image]) -> tuple[torch.Tensor, list[str] | None]:
    expert = load_expert(ExpertReference.parse(folder), LoadOptions())
    pixels = [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) for image in images]
    return torch.cat([expert(image[None])[0] for image in pixels]), list(expert.labels.values())
