"""Images unlike the search images, with and without torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import change_config

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.routing.unlike import SearchEntropies, entropies
from pertinence.runtime import load


@pytest.fixture(scope="module")
def blobs(images) -> list[torch.Tensor]:
    """In the size that no processor resizes by torchvision, whose pixels the runtime does not have bit for bit."""
    return list(images(40, 72, seed=11))


@pytest.fixture(scope="module")
def watched(exported, images, tmp_path_factory) -> Path:
    """A model that knows the entropies of its answers to other images at the point "from-features"."""
    folder = tmp_path_factory.mktemp("watched") / "model"
    shutil.copytree(exported.folder, folder)
    kept = SearchEntropies.of(
        entropies(exported.full(images(40, 72, seed=12), operating_point="from-features").logits)
    )

    def add(values: dict) -> None:
        values["front"][2]["entropies"] = kept.to_dict()

    change_config(folder, add)
    return folder


def test_p_values_are_in_the_output_and_the_reference_answers_if_asked(watched, blobs, exported):
    usual = exported.full(blobs, operating_point="from-features")
    assert usual.ood_p_value is None
    model = PertinenceForImageClassification.from_pretrained(watched, operating_point="from-features")
    ignored = model(blobs)
    assert torch.equal(ignored.logits, usual.logits)
    assert ignored.ood_p_value.shape == (40,)
    assert model(blobs, operating_point="mixed").ood_p_value is None, "nothing is known of that point"
    acting = PertinenceForImageClassification.from_pretrained(
        watched, operating_point="from-features", ood_action="reference", ood_false_alarms=0.2
    )
    out = acting(blobs)
    odd = (out.ood_p_value <= 0.2) & ~usual.experts_run[:, 2]
    assert odd.any()
    assert (out.expert_indices[odd] == 2).all()
    alone, _ = acting.pool[2](blobs)
    assert torch.allclose(out.logits[odd], alone[odd], atol=1e-5)
    assert torch.equal(out.logits[~odd], usual.logits[~odd])
    assert (out.gmacs[odd] > usual.gmacs[odd]).all()


def test_the_runtime_does_the_same(watched, blobs, tmp_path):
    full = PertinenceForImageClassification.from_pretrained(
        watched, operating_point="from-features", ood_action="reference", ood_false_alarms=0.2
    )
    full.save_pretrained(tmp_path / "saved")
    out = full(blobs)
    light = load(watched, operating_point="from-features", ood_action="reference", ood_false_alarms=0.2, threads=1)
    arrays = [blob.permute(1, 2, 0).numpy() for blob in blobs]
    routed = light.route(arrays)
    # Entropies that are all but equal may change their order.
    assert (np.abs(routed.p_values - out.ood_p_value.numpy()) < 1e-6).mean() > 0.9
    same = (routed.p_values <= 0.2) == (out.ood_p_value.numpy() <= 0.2)
    assert (routed.expert_indices == out.expert_indices.numpy())[same].all()
    assert light(arrays[0]).ood_p_value == pytest.approx(routed.p_values[0])
    kept = load(watched, operating_point="from-features", threads=1)
    assert kept(arrays[0]).expert == light.config.experts[kept.route(arrays[:1]).expert_indices[0]].name
    assert full.config.ood_action == "reference"
    saved = PertinenceForImageClassification.from_pretrained(tmp_path / "saved")
    assert (saved.config.ood_action, saved.config.ood_false_alarms) == ("reference", 0.2)


@pytest.mark.parametrize("options", [{"ood_action": "shout"}, {"ood_false_alarms": 2.0}])
def test_another_action_or_rate_is_refused(watched, options):
    with pytest.raises(PertinenceError, match="ood_"):
        PertinenceForImageClassification.from_pretrained(watched, **options)
    with pytest.raises(PertinenceError, match="ood_"):
        load(watched, **options)
