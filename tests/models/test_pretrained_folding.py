"""Models whose batch norms are folded: what is saved and exported of them is unfolded, and memory limits hold."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from pertinence import PertinenceError, PertinenceForImageClassification


ARCHITECTURES = ("test_efficientnet", "test_resnet")
"""By rising cost."""


@pytest.fixture(scope="module")
def experts(make_expert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    return [make_expert(folder / name, name, 64) for name in ARCHITECTURES]


@pytest.fixture(scope="module")
def saved(experts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    PertinenceForImageClassification.from_experts(experts, 0.5).save_pretrained(folder)
    return folder


def norms(model: PertinenceForImageClassification) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def check_close(found, expected):
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found.logits, expected.logits)
    assert torch.equal(found.experts_run, expected.experts_run)
    assert torch.equal(found.gmacs, expected.gmacs)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_saved_model_is_loaded_folded_only_when_asked(saved, images, lazy):
    plain = PertinenceForImageClassification.from_pretrained(saved)
    folded = PertinenceForImageClassification.from_pretrained(saved, fold_batch_norms=True, lazy=lazy)
    assert norms(plain) > 10
    assert norms(folded) == 0
    check_close(folded(images(16, 64)), plain(images(16, 64)))
    torch.testing.assert_close(copy.deepcopy(folded)(images(4, 64)).logits, folded(images(4, 64)).logits)


@pytest.mark.parametrize("save_experts", [False, True])
def test_nothing_of_it_is_saved(saved, experts, images, tmp_path, save_experts):
    folded = PertinenceForImageClassification.from_pretrained(saved, fold_batch_norms=True)
    folded.save_pretrained(tmp_path / "model", save_experts=save_experts)
    if save_experts:
        for index, expert in enumerate(experts):
            copied = tmp_path / "model" / "experts" / str(index) / "model.safetensors"
            assert copied.read_bytes() == (expert / "model.safetensors").read_bytes()
    else:
        assert json.loads((tmp_path / "model/config.json").read_text()) == json.loads(
            (saved / "config.json").read_text()
        )
    plain = PertinenceForImageClassification.from_pretrained(saved)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(again(images(8, 64)).logits, plain(images(8, 64)).logits)


def test_models_that_were_given_loaded_are_saved_as_they_were(experts, images, tmp_path):
    given = [
        {
            "model": AutoModelForImageClassification.from_pretrained(folder),
            "processor": AutoImageProcessor.from_pretrained(folder),
            "name": folder.name,
        }
        for folder in experts
    ]
    before = [copy.deepcopy(one["model"].state_dict()) for one in given]
    folded = PertinenceForImageClassification.from_experts(given, 0.5, fold_batch_norms=True)
    assert norms(folded) == 0
    for one, state in zip(given, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in one["model"].state_dict().items())
    folded.save_pretrained(tmp_path / "model", save_experts=True)
    for index, state in enumerate(before):
        tensors = load_file(tmp_path / "model" / "experts" / str(index) / "model.safetensors")
        assert set(tensors) <= {name.removeprefix("timm_model.") for name in state}
        assert any(name.endswith("running_mean") for name in tensors)
    plain = PertinenceForImageClassification.from_experts(experts, 0.5)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(again(images(8, 64)).logits, plain(images(8, 64)).logits)


def test_a_memory_limit_counts_both_copies(saved, images):
    sizes = [4 * entry["parameters"] for entry in json.loads((saved / "config.json").read_text())["experts"]]
    limit = 2 * sum(sizes)
    with pytest.raises(PertinenceError, match=f"give at least {limit:,}"):
        PertinenceForImageClassification.from_pretrained(saved, fold_batch_norms=True, lazy=True, max_memory=limit - 1)
    folded = PertinenceForImageClassification.from_pretrained(
        saved, fold_batch_norms=True, lazy=True, max_memory=limit
    )
    assert folded(images(8, 64)).logits.shape == (8, 10)


def test_it_compiles(saved, images):
    folded = PertinenceForImageClassification.from_pretrained(saved, fold_batch_norms=True)
    folded.compile_experts(backend="eager")
    plain = PertinenceForImageClassification.from_pretrained(saved)
    check_close(folded(images(4, 64)), plain(images(4, 64)))


def test_it_is_cast_as_any_model(saved, images):
    folded = PertinenceForImageClassification.from_pretrained(saved, fold_batch_norms=True).to(torch.bfloat16)
    assert folded.dtype == torch.bfloat16
    assert {value.dtype for value in folded.experts.parameters()} == {torch.bfloat16}
    assert folded(images(4, 64)).logits.isfinite().all()


def test_it_is_not_exported(saved, images, tmp_path):
    folded = PertinenceForImageClassification.from_pretrained(saved, fold_batch_norms=True)
    with pytest.raises(
        PertinenceError, match="was loaded with fold_batch_norms, but networks are exported as they are"
    ):
        folded.export_onnx(tmp_path / "model", images(256, 64))
    assert not (tmp_path / "model").exists()
