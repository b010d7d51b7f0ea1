"""How far pixels without torch agree: measured where torchvision resizes, and only there."""

import numpy as np
import pytest
import torch
import transformers

from pertinence import PertinenceError
from pertinence.experts.expert import load_expert
from pertinence.experts.host_pixels import measure_host_pixels
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.runtime.pixels import host_pixels


def make_resnet(resample: int):
    config = transformers.ResNetConfig(num_labels=10, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    processor = transformers.ViTImageProcessor(size={"height": 48, "width": 48}, resample=resample)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.ResNetForImageClassification(config)
    return load_expert(ExpertReference(model=network, processor=processor, name="resnet"), LoadOptions())


@pytest.mark.parametrize("resample", [2, 3], ids=["bilinear", "bicubic"])
def test_it_is_measured_on_the_pixels_and_the_answers_of_the_expert(images, resample):
    expert, given = make_resnet(resample), list(images(12, 61, seed=3))
    measured = measure_host_pixels(expert, given)
    own = torch.cat([expert.preprocess([image]) for image in given]).numpy()
    host = host_pixels(expert.entry.transform, [image.permute(1, 2, 0).numpy() for image in given])
    assert measured.images == 12
    assert measured.equal_pixels == pytest.approx((own == host).mean(), abs=1e-6)
    assert measured.largest_difference == pytest.approx(np.abs(own - host).max())
    answers = [expert.network.run(torch.from_numpy(pixels))[0].argmax(1) for pixels in (own, host)]
    assert measured.same_answers == pytest.approx((answers[0] == answers[1]).float().mean().item())
    assert measured.equal_pixels > 0.9


def test_pixels_that_are_the_same_by_construction_need_no_measurement(tiny_experts, images):
    expert = load_expert(ExpertReference(str(tiny_experts[0])), LoadOptions())
    assert measure_host_pixels(expert, list(images(2, 61))) is None
    fast = load_expert(ExpertReference(str(tiny_experts[0])), LoadOptions(), "fast")
    assert measure_host_pixels(fast, list(images(2, 61))).images == 2
    with pytest.raises(PertinenceError, match="there are none"):
        measure_host_pixels(fast, [])
