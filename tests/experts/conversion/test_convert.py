"""A file of weights becomes an expert: a folder with the same logits in transformers, in timm and here."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conversions import SEEN, SHOWN, assert_answers_like, convert, network, refusal, shaken
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from pertinence import (
    PertinenceError,
    PertinenceForImageClassification,
)


def test_a_checkpoint_of_timms_train_script(tmp_path: Path) -> None:
    model, average = network(seed=1), ModelEmaV3(network(seed=2))
    args = argparse.Namespace(
        model="test_resnet", img_size=48, input_size=None, mean=(0.4, 0.5, 0.6), std=None, crop_pct=0.9,
        interpolation="bilinear", num_classes=3, gp=None, bn_eps=None, model_kwargs={}, lr=0.1,
    )  # fmt: skip
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), 0.1), args, average, checkpoint_dir=tmp_path, recovery_dir=tmp_path
    )
    saver.save_checkpoint(0, metric=np.float64(71.5))
    converted = convert(tmp_path / "model_best.pth.tar")
    assert_answers_like(average.module, converted.folder, **SEEN)
    assert "state_dict_ema), the moving average (EMA)" in str(converted)
    assert "48 x 48 pixels, bilinear, crop 0.9, mean 0.4, 0.5, 0.6" in str(converted)
    assert "recorded in the file" in str(converted)
    plain = convert(tmp_path / "last.pth.tar", ema=False, image_size=64, output_dir=str(tmp_path / "plain"))
    assert_answers_like(model, plain.folder, **{**SEEN, "input_size": (3, 64, 64)})


def write_parallel(model: nn.Module, path: Path) -> None:
    torch.save(nn.DataParallel(model).state_dict(), path)


def write_compiled_lightning(model: nn.Module, path: Path) -> None:
    weights = {f"net._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights, "pytorch-lightning_version": "2.5", "loops": {"fit_loop": {}}}, path)


def write_sharded(model: nn.Module, path: Path) -> None:
    """As FSDP and activation checkpointing name the weights of the layers that they wrap."""
    inner = "._fsdp_wrapped_module._checkpoint_wrapped_module."
    names = {name: name.replace(".", inner, 1) for name in model.state_dict()}
    torch.save({f"_fsdp_wrapped_module.{names[name]}": tensor for name, tensor in model.state_dict().items()}, path)


def write_parallel_layers(model: nn.Module, path: Path) -> None:
    torch.save({name.replace(".", ".module.", 1): tensor for name, tensor in model.state_dict().items()}, path)


def write_trainer(model: nn.Module, path: Path) -> None:
    save_file({f"timm_model.{name}": tensor for name, tensor in model.state_dict().items()}, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("parallel.pth", write_parallel),
        ("epoch=3.ckpt", write_compiled_lightning),
        ("sharded.pth", write_sharded),
        ("parallel_layers.pth", write_parallel_layers),
        ("model.safetensors", write_trainer),
    ],
)
def test_prefixes_of_wrappers_are_removed(name: str, write: Callable[..., None], tmp_path: Path) -> None:
    model = network()
    write(model, tmp_path / name)
    converted = convert(tmp_path / name, architecture="test_resnet", **SHOWN)
    assert_answers_like(model, converted.folder, **SEEN)


def test_other_parts_of_a_module_are_left_out_with_a_warning(tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("pertinence.experts.conversion.convert.logger.propagate", True)
    weights = {f"model.{name}": tensor for name, tensor in network().state_dict().items()}
    torch.save({"state_dict": {**weights, "normalise.mean": torch.ones(3)}}, tmp_path / "last.ckpt")
    convert(tmp_path / "last.ckpt", architecture="test_resnet", image_size=48)
    assert "no part of the network and are left out: normalise.mean" in caplog.text


def test_options_that_the_train_script_recorded_are_kept(tmp_path: Path) -> None:
    options = {"bn_eps": 0.2, "global_pool": "max"}
    args = argparse.Namespace(
        model="test_efficientnet", bn_eps=0.2, model_kwargs={"global_pool": "max", "checkpoint_path": "/etc/passwd"}
    )
    model = network("test_efficientnet", **options)
    torch.save({"state_dict": model.state_dict(), "args": args}, tmp_path / "last.pth.tar")
    converted = convert(tmp_path / "last.pth.tar", **SHOWN)
    assert_answers_like(model, converted.folder, **SEEN)
    assert json.loads((converted.folder / "config.json").read_text())["model_args"] == options


def test_a_transformer_for_other_images_needs_their_size(tmp_path: Path) -> None:
    model = network("test_vit", img_size=48)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    assert "was trained on images of another size" in refusal(tmp_path / "vit.pth", architecture="test_vit")
    converted = convert(tmp_path / "vit.pth", architecture="test_vit", **SHOWN)
    assert_answers_like(model, converted.folder, **SEEN)


def test_weights_that_an_earlier_timm_named_otherwise(tmp_path: Path) -> None:
    model, old = network("test_convnext"), {}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", name)
        name = name.replace("blocks.", "").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        old[name.replace("head.fc", "head").replace("head.norm", "norm")] = tensor
    torch.save({"arch": "test_convnext", "state_dict": old}, tmp_path / "old.pth.tar")
    converted = convert(tmp_path / "old.pth.tar", **SHOWN)
    assert_answers_like(model, converted.folder, **SEEN)
    torch.save(old, tmp_path / "unknown.pth")  # whose names may be those of any network
    settings = {"architecture": "test_convnext", "output_dir": str(tmp_path / "other")}
    assert "does not hold the weights of test_convnext" in refusal(tmp_path / "unknown.pth", **settings)


@pytest.mark.parametrize(
    ("name", "architecture", "in_timm"),
    [
        ("resnet18", "resnet18.tv_in1k", "resnet18"),  # named alike
        ("mobilenet_v3_small", "mobilenet_v3_small", "mobilenetv3_small_100"),  # recognised by the sizes of tensors
    ],
)
def test_weights_of_torchvision(name: str, architecture: str, in_timm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = shaken(torchvision.models.get_model(name, num_classes=3), 64)
    torch.save({"model": model.state_dict(), "optimizer": {}, "epoch": 3}, tmp_path / "checkpoint.pth")
    converted = convert(tmp_path / "checkpoint.pth", architecture=architecture, **SHOWN)
    assert converted.architecture == in_timm
    assert_answers_like(model, converted.folder, **SEEN)


def test_networks_that_timm_does_not_have_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), path)
    sentence = refusal(path, architecture="squeezenet1_1")
    assert sentence == "timm has no network that answers like torchvision's squeezenet1_1, so it cannot be converted"


def test_a_network_that_answers_otherwise_than_torchvisions_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    from pertinence.experts.conversion import torchvision_networks

    monkeypatch.setitem(torchvision_networks.NAMES, "mobilenet_v3_small", ("mobilenetv3_small_100", {}))
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=3).state_dict(), path)
    sentence = refusal(path, architecture="mobilenet_v3_small", image_size=64)
    assert sentence.startswith("timm has no network that answers like torchvision's mobilenet_v3_small")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"architecture": "test_resnett"}, r"timm knows no architecture 'test_resnett': did you mean test_resnet"),
        ({"architecture": "resnet18.x_y"}, r"Invalid pretrained tag \(x_y\) for resnet18\. Leave the tag out"),
        ({"architecture": None}, r"does not say of which architecture it is: give its name, --architecture NAME"),
        ({"architecture": "test_resnet", "labels": None}, r"--labels FILE"),
        ({"architecture": "test_resnet", "output_dir": None}, r"--output-dir DIR"),
        ({"architecture": "test_resnet", "ema": True}, r"has no moving average \(EMA\)"),
        (
            {"architecture": "test_resnet", "labels": {0: "cat", 1: "dog"}},
            r"has 3 outputs, but there are 2 label names",
        ),
        (
            {"architecture": "test_convnext"},
            r"does not hold the weights of test_convnext: 0 of \d+ tensors fit; it lacks stem\.0\.weight, .*; "
            r"it has beside them conv1\.0\.weight, .*; give the --architecture that was trained",
        ),
        (
            {"architecture": "test_resnet", "mean": [123.7, 116.3, 103.5]},
            r"must lie between 0 and 1.*0\.485 for 123\.7",
        ),
        ({"architecture": "test_resnet", "std": [0.2, 0.2]}, r"std must be three numbers"),
        ({"architecture": "test_resnet", "crop_pct": 87.5}, r"crop_pct=87\.5 must lie between 0\.05 and 1"),
        ({"architecture": "test_resnet", "image_size": 100_000}, r"image_size=100000 must be at most 2048"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    assert re.search(sentence, refusal(tmp_path / "weights.pth", **settings))


def test_the_architecture_of_a_similar_name_that_fits_is_suggested(tmp_path: Path) -> None:
    torch.save(network("test_vit2").state_dict(), tmp_path / "weights.pth")
    sentence = refusal(tmp_path / "weights.pth", architecture="test_vit3")
    assert re.search(r"\d+ of \d+ tensors fit; .*they are those of test_vit2$", sentence), sentence


def test_another_architecture_than_the_recorded_one_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": network().state_dict(), "args": argparse.Namespace(model="test_resnet")}, path)
    assert refusal(path, architecture="test_vit").endswith("the file records the architecture 'test_resnet'")


@pytest.mark.parametrize(
    ("recorded", "sentence"),
    [
        ({"img_size": 10**9}, "records images of 1000000000 pixels a side"),
        ({"input_size": [3, -4, 48]}, "records images of -4 pixels a side"),
        ({"input_size": [3, 10**6, 48]}, "records images of 1000000 pixels a side"),
        ({"mean": "red"}, "the preprocessing that the file records makes no sense"),
        ({"crop_pct": 1e-9}, "the preprocessing that the file records makes no sense"),
        ({"in_chans": 1}, "takes images of 1 channels, expected 3"),
        ({"model_kwargs": {"layers": [10**6] * 4}}, "is a much larger network than the weights in the file"),
        ({"model_kwargs": {"colour": "red"}}, "timm cannot make test_resnet with colour='red'"),
        ({"model_kwargs": {"act_layer": torch.ones(2)}}, "options of its network that are not plain values"),
    ],
)
def test_settings_recorded_in_a_file_are_not_trusted(recorded: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pth.tar"
    args = argparse.Namespace(model="test_resnet", **recorded)
    torch.save({"state_dict": network().state_dict(), "args": args}, path)
    assert sentence in refusal(path)


def test_weights_that_give_no_numbers_leave_nothing_behind(tmp_path: Path) -> None:
    weights = network().state_dict()
    weights["fc.bias"] = weights["fc.bias"] * float("nan")
    torch.save(weights, tmp_path / "weights.pth")
    assert "NaN or infinite scores" in refusal(tmp_path / "weights.pth", architecture="test_resnet", image_size=48)


def test_a_number_in_the_place_of_a_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({**network().state_dict(), "fc.bias": torch.tensor(1.0)}, tmp_path / "weights.pth")
    words = refusal(tmp_path / "weights.pth", architecture="test_resnet", image_size=48)
    assert "fc.bias of another shape, one number where the network has" in words


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    weights = network().state_dict()
    weights["fc.weight"] = weights["fc.weight"].to(torch.int8)
    torch.save(weights, tmp_path / "weights.pth")
    assert "it is quantized" in refusal(tmp_path / "weights.pth", architecture="test_resnet")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, small_disk: Any) -> None:
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    small_disk.leave(100_000)
    before = sorted(small_disk.path.iterdir())
    with pytest.raises(PertinenceError, match="cannot be written to"):
        convert(tmp_path / "weights.pth", architecture="test_resnet", output_dir=str(small_disk.path / "expert"))
    assert sorted(small_disk.path.iterdir()) == before


def test_a_folder_that_holds_something_is_never_replaced(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "mine.txt").write_text("mine")
    assert "exists: choose another --output-dir" in refusal(tmp_path / "weights.pth", architecture="test_resnet")
    assert refusal(tmp_path / "weights.pth", architecture="test_resnet", output_dir=str(tmp_path))


@pytest.mark.parametrize("as_path", [True, False])
@pytest.mark.parametrize("name", ["model_best.pth.tar", "model.pt", "last.ckpt", "pytorch_model.bin"])
def test_a_file_given_as_an_expert_names_the_command(
    name: str, as_path: bool, tmp_path: Path, monkeypatch: Any, tiny_experts: list[Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({}, tmp_path / name)
    for file in (Path(name) if as_path else name, tmp_path / "missing" / name):
        with pytest.raises(PertinenceError, match=r"is a file.*`pertinence convert FILE --architecture NAME --labels"):
            PertinenceForImageClassification.from_experts([file, tiny_experts[0]], 0.5)


def test_a_folder_with_other_files_of_weights_names_the_command(tmp_path: Path, make_expert: Any) -> None:
    torch.save({}, tmp_path / "model_best.pth.tar")
    with pytest.raises(PertinenceError, match=r"no config\.json.*pertinence convert FILE"):
        PertinenceForImageClassification.from_experts([tmp_path, tmp_path], 0.5)
    folder = make_expert(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PertinenceError, match="no weights in safetensors.*`pertinence convert .*pickled"):
        PertinenceForImageClassification.from_experts([folder, folder], 0.5)
