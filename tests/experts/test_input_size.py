"""The size of an input where the processor does not say it, or says another than the network takes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageClassification, CLIPImageProcessor, ViTImageProcessor

from pertinence import PertinenceError, PertinenceForImageClassification, PertinenceImageProcessor
from pertinence.experts.expert import load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.hub.info import describe_model


def expert_of(reference: Any, preprocessing: str = "exact"):
    return load_expert(ExpertReference.parse(reference), LoadOptions(), preprocessing)


@pytest.fixture
def small_vit(tmp_path):
    """A function: a folder with a ViT of timm that has some `model_args`, and an `input_size` in its config."""

    def save(input_size: int, **arguments: Any) -> Path:
        torch.manual_seed(0)
        arguments = {"depth": 1, "patch_size": 8, **arguments}
        network = timm.create_model("vit_tiny_patch16_224", num_classes=5, **arguments)
        timm.models.save_for_hf(network, str(tmp_path), safe_serialization=True)
        path = tmp_path / "config.json"
        config = json.loads(path.read_text())
        config["pretrained_cfg"]["input_size"] = [3, input_size, input_size]
        path.write_text(json.dumps({**config, "num_classes": 5, "model_args": arguments}))
        return tmp_path

    return save


@pytest.mark.parametrize("chosen", [{}, {"dynamic_img_size": False}], ids=["unset", "fixed"])
def test_a_network_made_for_another_size_gets_it(small_vit, images, caplog, chosen):
    folder = small_vit(224, img_size=40, **chosen)
    expert = expert_of(folder)
    assert expert.entry.transform.size == (40, 40)
    assert "gives images of 224x224 pixels, but its network was made with an `img_size` of 40x40" in caplog.text
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 40, 40]
    (folder / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(expert_of(folder)(images(3, 64))[0], expert(images(3, 64))[0], rtol=0, atol=1e-6)


def test_a_size_that_the_network_does_not_take_is_refused(small_vit):
    with pytest.raises(PertinenceError, match="gives images of 96x96 pixels, and its network takes only 224x224"):
        expert_of(small_vit(96))


def test_a_network_that_was_chosen_to_take_any_size_takes_it(small_vit, images, caplog):
    folder = small_vit(64, img_size=32, dynamic_img_size=True)
    photos = images(3, 80)
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        pixels = processor(list(photos.numpy()), return_tensors="pt")["pixel_values"]
        alone = AutoModelForImageClassification.from_pretrained(folder)(pixels).logits
    torch.testing.assert_close(expert_of(folder)(photos)[0], alone, rtol=0, atol=1e-5)
    assert "img_size" not in caplog.text


FREE = {
    "as-it-is": lambda: ViTImageProcessor(do_resize=False),
    "shortest-edge": lambda: CLIPImageProcessor(size={"shortest_edge": 24}, do_center_crop=False),
    "bounded": lambda: ViTImageProcessor(size={"max_height": 40, "max_width": 30}),
    "whole-patches": lambda: transformers.GLPNImageProcessor(size_divisor=16),
    "keeping-its-ratio": lambda: transformers.DPTImageProcessor(
        size={"height": 32, "width": 32}, keep_aspect_ratio=True, ensure_multiple_of=8
    ),
}


def resnet(seed: int = 0) -> transformers.ResNetForImageClassification:
    torch.manual_seed(seed)
    config = transformers.ResNetConfig(num_labels=5, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return transformers.ResNetForImageClassification(config).eval()


@pytest.mark.parametrize("preprocessing", ["exact", "fast"])
@pytest.mark.parametrize("name", FREE)
def test_images_of_several_sizes_are_answered_as_alone(images, name, preprocessing):
    network, processor = resnet(), FREE[name]()
    photos = [image for size in (40, 33, 40, 64) for image in images(2, size)[:, :, : size - 8]]
    expert = expert_of({"model": network, "processor": processor}, preprocessing)
    with torch.no_grad():
        alone = torch.cat([network(processor(photo, return_tensors="pt")["pixel_values"]).logits for photo in photos])
    for max_batch in (None, 3):
        torch.testing.assert_close(expert(photos, max_batch)[0], alone, rtol=0, atol=1e-5)


def test_an_assumed_size_is_said(tmp_path, caplog):
    free, fixed = ({"model": resnet(seed), "name": f"{seed}"} for seed in (0, 1))
    free["processor"], fixed["processor"] = FREE["as-it-is"](), ViTImageProcessor(size={"height": 32, "width": 32})
    with caplog.at_level(logging.WARNING):
        model = PertinenceForImageClassification.from_experts([free, fixed], 0.5)
    words = "its ViTImageProcessor gives images of no fixed size: its operations are counted at 256x256 pixels, which"
    assert caplog.text.count("The cost of expert") == caplog.text.count(f"expert '0' is uncertain: {words}") == 1
    notes = {entry["name"]: entry.get("cost_note") for entry in model.config.experts}
    assert notes["1"] is None
    assert notes["0"].startswith(words)
    model.save_pretrained(tmp_path, save_experts=True)
    assert f"The cost of 0 is uncertain: {notes['0']}." in describe_model(tmp_path)[1]
    loaded = PertinenceForImageClassification.from_pretrained(tmp_path)
    assert {entry["name"]: entry.get("cost_note") for entry in loaded.config.experts} == notes


def test_the_size_that_is_assumed_is_the_networks_own():
    config = transformers.ViTConfig(
        image_size=40, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    network = transformers.ViTForImageClassification(config)
    expert = expert_of({"model": network, "processor": FREE["as-it-is"]()})
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 40, 40))
    assert expert.entry.transform.size == (40, 40)
    assert expert.entry.gmacs == pytest.approx(counter.get_total_flops() / 2e9, rel=0.1)
    with pytest.raises(
        PertinenceError, match=r"expert 'ViTFor.*': its ViTFor.* fails on pixels of shape \(1, 3, 24, 40\)"
    ):
        expert(PertinenceImageProcessor()(torch.zeros(3, 24, 40, dtype=torch.uint8))["images"])
