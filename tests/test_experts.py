"""Experts: any image classifier, from anywhere, answering inside a pool exactly as it does alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from datasets import load_dataset
from huggingface_hub import HfApi
from local_hub import LocalHub
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel, ViTImageProcessor

from pertinence import PertinenceError, PertinenceForImageClassification, PertinenceImageProcessor
from pertinence.experts import Expert, ExpertReference, LoadOptions, load_expert


NUM_LABELS = 7
VIT_SIZES = {"patch_size": 8, "hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 192}
LEVIT_SIZES = {"hidden_sizes": [64, 96, 128], "depths": [1] * 3, "num_attention_heads": [2] * 3, "key_dim": [8] * 3}
Loaded = tuple[PreTrainedModel, Any]
"""A model and its image processor."""


def cascade(experts: Iterable[Any], threshold: float = 0.5, **options: Any) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_experts(list(experts), threshold, **options)


def refusal(experts: Iterable[Any], **options: Any) -> str:
    """The one sentence that says why these experts do not make a pool."""
    with pytest.raises(PertinenceError) as refused:
        cascade(experts, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


def timm_model(architecture: str, size: int = 64, **model_args: Any) -> Loaded:
    transform = {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = transformers.TimmWrapperConfig(
        architecture=architecture, num_labels=NUM_LABELS, model_args=model_args, pretrained_cfg=transform
    )
    processor = transformers.TimmWrapperImageProcessor(config.pretrained_cfg, architecture=architecture)
    return with_statistics(transformers.TimmWrapperForImageClassification(config), size), processor


def native_model(name: str, size: int = 32, processor: Any = None, **config: Any) -> Loaded:
    model_class = getattr(transformers, f"{name}ForImageClassification")
    model = model_class(model_class.config_class(num_labels=NUM_LABELS, **config))
    processor = processor or ViTImageProcessor(size={"height": size, "width": size})
    return with_statistics(model, size), processor


def with_statistics(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """Batch normalisation with the statistics of some images, without which random layers answer all images alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(pixel_values=torch.rand(8, 3, size, size) * 2 - 1)
    return model.eval()


# Evidence: whatever the architecture, its own logits, and what its last layer reads


@dataclass(frozen=True)
class Architecture:
    """A classifier small enough for a test.

    Attributes:
        name: what pytest calls it.
        last: path of its final layer, found by reading its code.
        make: makes it.
        one_head: whether the final layer alone gives the logits; two heads are averaged.
    """

    name: str
    last: str
    make: Callable[[], Loaded]
    one_head: bool = True


def timm_architecture(last: str, name: str, one_head: bool = True, **options: Any) -> Architecture:
    return Architecture(f"timm-{name}", f"timm_model.{last}", partial(timm_model, name, **options), one_head)


def native_architecture(last: str, name: str, **options: Any) -> Architecture:
    return Architecture(name, last, partial(native_model, name, **options))


ARCHITECTURES = [
    timm_architecture("fc", "test_resnet"),
    timm_architecture("head", "test_vit", img_size=64),
    timm_architecture("head.fc", "test_convnext"),
    timm_architecture("classifier", "test_efficientnet"),
    timm_architecture("classifier", "mobilenetv3_small_100"),
    timm_architecture(
        "head.fc", "swin_tiny_patch4_window7_224", size=56, img_size=56, embed_dim=96, depths=(1, 1), num_heads=(3, 6)
    ),
    # Its last layer is a convolution.
    timm_architecture("head.fc", "resnetv2_50", layers=(1, 1), channels=(64, 128), stem_chs=32),
    # A head for the class token and one for the distillation token.
    timm_architecture(
        "head_dist", "deit_tiny_distilled_patch16_224", one_head=False, img_size=64, embed_dim=96, depth=1, num_heads=3
    ),
    # The same, with a batch normalisation in each head.
    timm_architecture(
        "head_dist.linear",
        "levit_128s",
        one_head=False,
        img_size=64,
        embed_dim=(64, 96, 128),
        depth=(1, 1, 1),
        num_heads=(2, 2, 2),
        key_dim=8,
    ),
    # Its last layer answers for every token.
    timm_architecture("aux_head", "volo_d1_224", one_head=False, img_size=64),
    native_architecture("classifier", "ViT", image_size=32, **VIT_SIZES),
    native_architecture("classifier", "DeiT", image_size=32, **VIT_SIZES),
    native_architecture("classifier", "Dinov2", image_size=32, **VIT_SIZES),
    native_architecture(
        "classifier", "Swin", image_size=32, patch_size=4, embed_dim=96, depths=[1, 1], num_heads=[1, 2], window_size=4
    ),
    native_architecture("classifier", "ConvNext", hidden_sizes=[64, 128], depths=[1, 1], num_stages=2),
    native_architecture("classifier.1", "ResNet", hidden_sizes=[64, 128], depths=[1, 1], embedding_size=32),
    native_architecture("classifier", "MobileNetV2", finegrained_output=False, depth_multiplier=1.4),
    native_architecture("classifier.linear", "Levit", size=64, image_size=64, **LEVIT_SIZES),
]


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def case(request: pytest.FixtureRequest) -> tuple[Architecture, Any, Expert]:
    """An architecture, the processor and the expert made of one such model."""
    torch.manual_seed(0)
    model, processor = request.param.make()
    expert = load_expert(ExpertReference.parse({"model": model, "processor": processor}), LoadOptions())
    return request.param, processor, expert


def test_an_expert_answers_as_its_model_does(case, images):
    _, processor, expert = case
    batch = images(5, 72)
    logits, _ = expert(batch)
    with torch.no_grad():
        alone = expert.model(**processor(as_pil(batch), return_tensors="pt")).logits
    assert logits.shape == (5, NUM_LABELS)
    assert_equal_logits(logits, alone)


def test_features_are_what_the_last_layer_reads(case, images):
    architecture, _, expert = case
    layer, read = expert.model.get_submodule(architecture.last), []
    hook = layer.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    logits, features = expert(images(5, 72))
    hook.remove()
    positions = read[0].flatten(2).mean(2) if isinstance(layer, nn.Conv2d) else read[0].flatten(1, -2).mean(1) if read[0].ndim > 2 else read[0]
    torch.testing.assert_close(features, positions)
    assert features.shape == (5, expert.entry["features"])
    if architecture.one_head:
        assert_equal_logits(nn.functional.linear(features, layer.weight.flatten(1), layer.bias), logits)


def test_gmacs_agree_with_the_counter_of_torch(case):
    _, _, expert = case
    image = torch.zeros(1, 3, *expert.preprocess.transform.size)
    # Attention as matrix products: elder versions of torch count no other on the CPU.
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        expert.model(pixel_values=image)
    # fvcore also counts normalisation and pooling; a multiply-add is two operations for torch and one for fvcore.
    assert expert.entry["gmacs"] == pytest.approx(counter.get_total_flops() / 2e9, rel=0.04)
