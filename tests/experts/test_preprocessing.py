"""Processors whose settings or code a description does not fit: the same pixels as alone, or a refusal by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import ViTImageProcessor

from pertinence import PertinenceError, PertinenceForImageClassification, PertinenceImageProcessor
from pertinence.experts.preprocessing import Preprocessor, resolve_transform


SIZE = {"height": 32, "width": 32}


class Trimmed(ViTImageProcessor):
    """Leaves out the rows at the top that are black."""

    def _preprocess(self, images, **settings):
        return super()._preprocess([image[:, image.sum((0, 2)).nonzero().min() :] for image in images], **settings)


class ChannelsLast(transformers.BaseImageProcessor):
    """Knows images whose channels come last, as a pipeline gives them, and no other."""

    def __call__(self, images: Any, return_tensors: str = "pt", **settings: Any) -> transformers.BatchFeature:
        images = images if isinstance(images, list) else [images]
        pixels = [torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) for image in images]
        return transformers.BatchFeature({"pixel_values": torch.stack(pixels) / 127.5 - 1})


class SquaresOnly(ViTImageProcessor):
    """Fails on other images than squares."""

    def _preprocess(self, images, **settings):
        if any(image.shape[-1] != image.shape[-2] for image in images):
            raise RuntimeError("square images only")
        return super()._preprocess(images, **settings)


PROCESSORS = {
    "one-number": lambda: ViTImageProcessor(size=SIZE, image_mean=0.4, image_std=0.3),
    "one-in-a-list": lambda: ViTImageProcessor(size=SIZE, image_mean=[0.4], image_std=[0.2, 0.3, 0.4]),
    "one-number-pil": lambda: transformers.ViTImageProcessorPil(size=SIZE, image_mean=0.4, image_std=0.3),
    "blue-first": lambda: transformers.MobileViTImageProcessor(size={"shortest_edge": 40}, crop_size=SIZE),
    "scaled-to-one": lambda: ViTImageProcessor(size=SIZE, rescale_factor=1 / 127.5, image_mean=1.0, image_std=1.0),
    "margins-cut": lambda: transformers.NougatImageProcessor(size=SIZE),
    "turned": lambda: transformers.DonutImageProcessor(size={"height": 32, "width": 48}, do_align_long_axis=True),
    "padded": lambda: transformers.DPTImageProcessor(size=SIZE, do_pad=True, size_divisor=24),
    "code-of-others": lambda: Trimmed(size=SIZE),
    "channels-last": ChannelsLast,
}


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor(images, name, mode):
    processor = PROCESSORS[name]()
    photos = [images(1, 60)[0], images(1, 60)[0, :, 20:], images(1, 60)[0, :, :, :37]]
    photos[0][:, :9] = 0
    photos[1][:, -9:] = photos[1][:, :, :9] = 255
    pixels = Preprocessor(resolve_transform(processor), processor, mode)(photos)
    inputs = [Image.fromarray(photo.permute(1, 2, 0).numpy()) for photo in photos]
    alone = [torch.as_tensor(processor(photo, return_tensors="pt")["pixel_values"]) for photo in inputs]
    assert torch.equal(pixels, torch.cat(alone))


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        (
            transformers.Siglip2ImageProcessor,
            r"no images but pixel_values of shape \(1, 256, 768\), pixel_attention_mask",
        ),
        (transformers.DetrImageProcessor, "pixel_mask besides images"),
        (transformers.VivitImageProcessor, r"pixel_values of shape \(1, 1, 3, 224, 224\)"),
        (lambda: ViTImageProcessor(image_mean=[0.5] * 4, image_std=[0.5] * 4), "gives no images"),
    ],
    ids=["patches", "mask", "frames", "four-channels"],
)
def test_what_is_more_than_an_image_is_refused_by_name(tiny_experts, processor, words):
    network = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(num_labels=10, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    )
    odd = {"model": network, "processor": processor(), "name": "odd"}
    with pytest.raises(PertinenceError, match=f"expert 'odd': its .*ImageProcessor.*{words}"):
        PertinenceForImageClassification.from_experts([odd, tiny_experts[0]], 0.5)


def test_a_processor_that_fails_is_named_with_its_expert(images):
    class Wide(ViTImageProcessor):
        def _preprocess(self, images, **settings):
            if any(image.shape[-1] < 20 for image in images):
                raise ValueError("too narrow")
            return super()._preprocess(images, **settings)

    network = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(num_labels=5, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    )
    other = {"model": network, "processor": ViTImageProcessor(size=SIZE), "name": "other"}
    wide = {"model": network, "processor": Wide(size={"height": 48, "width": 48}), "name": "wide"}
    model = PertinenceForImageClassification.from_experts([wide, other], 1.0)
    with pytest.raises(PertinenceError, match=r"expert 'wide': its Wide fails on images of shape \(1, 3, 30, 16\)"):
        model(PertinenceImageProcessor()(images(1, 30)[0, :, :, :16])["images"])


def test_a_processor_that_takes_squares_alone_has_a_fixed_size(images):
    processor = SquaresOnly(size=SIZE)
    preprocess = Preprocessor(resolve_transform(processor), processor)
    assert preprocess.has_fixed_size
    assert preprocess(images(2, 40)).shape == (2, 3, 32, 32)
    with pytest.raises(PertinenceError, match="SquaresOnly fails on images of shape .* square images only"):
        preprocess([images(1, 40)[0, :, 5:]])
