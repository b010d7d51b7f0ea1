"""Experts made from one checkpoint by a smaller input: what they see, cost and share, through save and load."""

import copy

import datasets
import pytest
import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from pertinence import (
    DispatcherSearch,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
    SearchArguments,
)
from pertinence.checkpoints import LoadOptions
from pertinence.experts import load_pool


SIZE, SMALLER = 64, 56


@pytest.fixture(scope="module")
def folder(make_expert, tmp_path_factory):
    return make_expert(tmp_path_factory.mktemp("sizes") / "convnext", size=SIZE)


@pytest.fixture(scope="module")
def references(folder):
    return [{"repo_id": str(folder), "image_size": SMALLER}, str(folder)]


@pytest.mark.parametrize("preprocessing", ["exact", "fast"])
def test_a_smaller_expert_sees_the_middle_of_what_the_whole_one_sees(references, images, preprocessing):
    small, whole = load_pool(references, LoadOptions(), preprocessing)
    assert (small.entry["name"], whole.entry["name"]) == ("convnext-56px", "convnext")
    assert small.entry["gmacs"] < 0.85 * whole.entry["gmacs"]
    for shape in (SIZE, 50, 97):  # taken as it is, enlarged and shrunk by the expert's own processor
        batch = images(3, shape)
        pixels = tvF.center_crop(whole.preprocess(batch), [SMALLER, SMALLER])
        assert torch.equal(small.preprocess(batch), pixels)
        assert torch.equal(small(batch)[0], whole.model(pixel_values=pixels).logits)


def test_weights_are_loaded_once_and_features_kept_apart(references, images):
    small, whole = load_pool(references, LoadOptions())
    assert small.model is whole.model
    batch = images(2, SIZE)
    alone = [load_pool(references, LoadOptions())[i](batch) for i in (0, 1)]
    for expert, (logits, features) in zip((small, whole), alone, strict=True):
        assert torch.equal(expert(batch)[0], logits)
        assert torch.equal(expert(batch)[1], features)
    assert not torch.equal(alone[0][1], alone[1][1])


@pytest.mark.parametrize("save_experts", [False, True])
def test_saved_and_loaded_again(references, images, tmp_path, save_experts):
    model = PertinenceForImageClassification.from_experts(references, thresholds=0.5)
    model.save_pretrained(tmp_path / "model", save_experts=save_experts)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    batch = PertinenceImageProcessor()(list(images(8, 70)))["images"]
    expected, found = model(batch), again(batch)
    assert torch.equal(expected.logits, found.logits)
    assert torch.equal(expected.gmacs, found.gmacs)
    assert again.experts[0].model is again.experts[1].model
    if save_experts:
        assert len(list((tmp_path / "model").rglob("experts/*/model.safetensors"))) == 1
        again.save_pretrained(tmp_path / "again", save_experts=True)
        third = PertinenceForImageClassification.from_pretrained(tmp_path / "again")
        assert torch.equal(third(batch).logits, expected.logits)


def test_searched_like_any_other_expert(digits, digit_experts, tmp_path):
    largest, size = digit_experts[1], 40
    args = SearchArguments(population=4, generations=1, cache_dir=str(tmp_path / "cache"), device="cpu")
    pool = [{"repo_id": str(largest), "image_size": size, "name": "middle"}, str(largest)]
    result = DispatcherSearch(pool, digits[1], args, report_dataset=digits[2]).run()
    stores = {path.name for path in (tmp_path / "cache/predictions").iterdir()}
    assert len(stores) == 4  # two experts, two splits
    names = [entry["name"] for entry in result.model.config.experts]
    assert names == ["middle", largest.name]
    result.save(tmp_path / "run")
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "run")
    some = datasets.Dataset.select(digits[2], range(20))
    batch = PertinenceImageProcessor()(list(some["image"][:]))["images"]
    assert torch.equal(again(batch).logits, result.model(batch).logits)


@pytest.mark.parametrize("size", [SIZE, SIZE + 1, 0, -8, 48.0, "48"])
def test_a_size_that_is_not_smaller_is_refused(folder, size):
    with pytest.raises(PertinenceError, match="expert 'convnext.*must be a whole number below the 64 pixels"):
        load_pool([{"repo_id": str(folder), "image_size": size}, str(folder)], LoadOptions())


@pytest.mark.parametrize("is_dynamic", [True, False])
def test_what_an_architecture_does_not_take_is_refused(make_expert, tmp_path, is_dynamic):
    """A ViT has a position for each patch; some can move them, but none cuts a patch in two."""
    folder = make_expert(tmp_path / "vit", "test_vit", 96, model_args={"img_size": 96, "dynamic_img_size": is_dynamic})
    takes, refuses = ([80], [84]) if is_dynamic else ([], [80, 84])
    for size in takes:
        assert len(load_pool([{"repo_id": str(folder), "image_size": size}, str(folder)], LoadOptions())) == 2
    for size in refuses:
        with pytest.raises(
            PertinenceError, match=f"'vit-{size}px': it does not take images of {size} pixels, only of 96x96"
        ):
            load_pool([{"repo_id": str(folder), "image_size": size}, str(folder)], LoadOptions())


def test_the_same_size_twice_is_refused(references):
    with pytest.raises(PertinenceError, match="are the same checkpoint with the same settings"):
        load_pool([references[0], references[0]], LoadOptions())


def test_loaded_models_share_what_they_share(folder):
    """Two processors of one model are two experts, not one."""
    model = load_pool([str(folder), {"repo_id": str(folder), "image_size": SMALLER}], LoadOptions())[0].model
    config = copy.deepcopy(model.config)
    config.pretrained_cfg["mean"] = [0.1, 0.2, 0.3]
    other = TimmWrapperImageProcessor(config.pretrained_cfg, architecture=config.architecture)
    pool = load_pool(
        [{"model": model, "name": "own"}, {"model": model, "processor": other, "name": "other"}], LoadOptions()
    )
    means = {expert.entry["name"]: expert.preprocess.transform.mean for expert in pool}
    assert means == {"own": (0.5, 0.5, 0.5), "other": pytest.approx((0.1, 0.2, 0.3))}
