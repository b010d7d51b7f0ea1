"""The cost of experts whose input has no fixed size: that of the images of the data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTImageProcessor

from pertinence import DispatcherSearch, SearchArguments, advise


SIZES = [(32, 48), (32, 32), (64, 32), (40, 40)]
"""(height, width) of the images, in turns."""


def network(seed: int, width: int) -> transformers.ResNetForImageClassification:
    torch.manual_seed(seed)
    config = transformers.ResNetConfig(num_labels=2, embedding_size=8, hidden_sizes=[8, width], depths=[1, 1])
    return transformers.ResNetForImageClassification(config).eval()


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    generator = np.random.default_rng(0)
    photos = [Image.fromarray(generator.integers(0, 256, (*SIZES[row % 4], 3), dtype=np.uint8)) for row in range(80)]
    labels = generator.integers(0, 2, 80).tolist()
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["LABEL_0", "LABEL_1"])})
    return Dataset.from_dict({"image": photos, "label": labels}, features=features)


@pytest.fixture(scope="module")
def experts() -> list[dict]:
    """A network that takes images as they are, and one, dearer on them, that resizes them to 64 x 64."""
    fixed = ViTImageProcessor(size={"height": 64, "width": 64})
    return [
        {"model": network(0, 16), "processor": ViTImageProcessor(do_resize=False), "name": "free"},
        {"model": network(1, 16), "processor": fixed, "name": "fixed"},
    ]


def operations(size: tuple[int, int]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(0, 16)(torch.zeros(1, 3, *size))
    return counter.get_total_flops() / 2e9


def test_a_search_measures_the_cost_on_its_images(dataset, experts, caplog):
    result = DispatcherSearch(experts, dataset, SearchArguments(labels="agree")).run()
    assert result.model.config.expert_names == ["free", "fixed"]  # at the assumed size the order is the other one
    entry = result.model.config.experts[0]
    assert entry["gmacs"] == pytest.approx(np.mean([operations(size) for size in SIZES]), rel=0.1)
    assert "its GMACs are the mean over 32 images of the search" in entry["cost_note"]
    assert entry["cost_note"].endswith("at 64x32 pixels")
    assert caplog.text.count("The cost of expert 'free' is uncertain: its GMACs are the mean") == 1
    assert "which is assumed" not in caplog.text


def test_advice_measures_it_too(dataset, experts):
    assert [expert.name for expert in advise(experts, dataset).experts] == ["free", "fixed"]
