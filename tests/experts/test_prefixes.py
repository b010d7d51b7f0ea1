"""Weights that were saved from a wrapped model."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessor

from pertinence import PertinenceError, PertinenceForImageClassification


from_experts = PertinenceForImageClassification.from_experts


@pytest.fixture(scope="module")
def other(make_expert, tmp_path_factory):
    return make_expert(tmp_path_factory.mktemp("other") / "other")


@pytest.fixture(scope="module", params=["timm", "vit"])
def plain(request, make_expert, tmp_path_factory):
    """Folder of an expert whose names are those of timm, or those of transformers."""
    folder = tmp_path_factory.mktemp("plain") / request.param
    if request.param == "timm":
        return make_expert(folder, "test_resnet", 48)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=32, patch_size=8, num_labels=10, **small)
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def renamed(folder, target, *names):
    """A copy of an expert with the tensors once for each function in `names`, which gives their new names."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    changed = {name(key): value + index for index, name in enumerate(names) for key, value in tensors.items()}
    save_file({key: value for key, value in changed.items() if key}, target / "model.safetensors", {"format": "pt"})
    return target


def answers(model, name, images):
    expert = next(expert for expert in model.experts if expert.entry.name == name)
    return expert(images)[0]


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod.", "ema_model.module."])
def test_a_prefix_is_left_out(plain, other, tmp_path, images, prefix):
    wrapped = renamed(plain, tmp_path / "wrapped", lambda key: prefix + key)
    model = from_experts([wrapped, other], 0.5)
    expected = answers(from_experts([plain, other], 0.5), plain.name, images(4, 40))
    torch.testing.assert_close(answers(model, "wrapped", images(4, 40)), expected)
    model.save_pretrained(tmp_path / "model", save_experts=True)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model", lazy=True)
    torch.testing.assert_close(answers(again, "wrapped", images(4, 40)), expected)


def test_wrappers_of_single_layers_are_left_out(plain, other, tmp_path, images):
    def wrapped_name(key):
        first, _, rest = key.partition(".")
        return f"module.{first}._orig_mod.{rest}"

    wrapped = renamed(plain, tmp_path / "wrapped", wrapped_name)
    expected = answers(from_experts([plain, other], 0.5), plain.name, images(4, 40))
    torch.testing.assert_close(answers(from_experts([wrapped, other], 0.5), "wrapped", images(4, 40)), expected)


def test_what_a_wrapper_adds_beside_the_weights_is_left_out(plain, other, tmp_path, images):
    wrapped = renamed(plain, tmp_path / "wrapped", lambda key: f"model.{key}")
    tensors = load_file(wrapped / "model.safetensors")
    tensors |= {"n_averaged": torch.tensor(3), "criterion.weight": torch.ones(10)}
    save_file(tensors, wrapped / "model.safetensors", {"format": "pt"})
    expected = answers(from_experts([plain, other], 0.5), plain.name, images(4, 40))
    torch.testing.assert_close(answers(from_experts([wrapped, other], 0.5), "wrapped", images(4, 40)), expected)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([lambda key: f"model.{key}", lambda key: f"ema.{key}"], "several sets, with the prefixes 'ema.', 'model.'"),
        ([lambda key: "" if "head" in key or "classifier" in key or "fc." in key else f"module.{key}"],
         "the prefix 'module.', and without it still lack .*classification head"),
        ([lambda key: f"base_model.model.{key}".replace(".weight", ".base_layer.weight")], "adapters of peft.*merge"),
    ],
    ids=["two", "no-head", "adapters"],
)  # fmt: skip
def test_what_is_not_sure_is_refused(plain, other, tmp_path, names, words):
    wrapped = renamed(plain, tmp_path / "wrapped", *names)
    with pytest.raises(PertinenceError, match=f"'wrapped': its weights .*{words}"):
        from_experts([wrapped, other], 0.5)
