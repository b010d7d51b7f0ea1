"""Arguments of `timm.create_model` are obeyed, stored and checked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from conversions import SEEN, SHOWN, assert_answers_like, convert, network, refusal, shaken


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["model_args"]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (["act_layer=gelu", "drop_path_rate=0.1"], {"act_layer": "gelu", "drop_path_rate": 0.1}),
        (["act_layer='gelu'", "layers=(1, 1, 1, 1)"], {"act_layer": "gelu", "layers": [1, 1, 1, 1]}),
        ({"act_layer": "gelu", "in_chans": 3}, {"act_layer": "gelu"}),
    ],
    ids=str,
)
def test_they_are_obeyed_and_stored(given: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = network(**options)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    converted = convert(tmp_path / "weights.pth", architecture="test_resnet", model_kwargs=given, **SHOWN)
    assert_answers_like(model, converted.folder, **SEEN)
    assert stored(converted.folder) == converted.model_args == options


def test_they_win_one_by_one_over_those_that_are_recorded(tmp_path: Path) -> None:
    model = network(act_layer="gelu", layers=[1, 1, 1, 1])
    args = argparse.Namespace(model="test_resnet", model_kwargs={"act_layer": "silu", "layers": [1, 1, 1, 1]})
    torch.save({"state_dict": model.state_dict(), "args": args}, tmp_path / "last.pth.tar")
    converted = convert(tmp_path / "last.pth.tar", model_kwargs=["act_layer=gelu"], **SHOWN)
    assert_answers_like(model, converted.folder, **SEEN)
    assert stored(converted.folder) == {"act_layer": "gelu", "layers": [1, 1, 1, 1]}


@pytest.mark.parametrize("recorded", [True, False])
def test_the_size_of_a_transformers_images(recorded: bool, tmp_path: Path) -> None:
    model = network("test_vit", img_size=48)
    options = {"img_size": 48}
    args = argparse.Namespace(model="test_vit", model_kwargs=options if recorded else {})
    torch.save({"state_dict": model.state_dict(), "args": args}, tmp_path / "last.pth.tar")
    shown = {name: value for name, value in SHOWN.items() if name != "image_size"}
    converted = convert(tmp_path / "last.pth.tar", model_kwargs=None if recorded else ["img_size=48"], **shown)
    assert_answers_like(model, converted.folder, **SEEN)
    assert stored(converted.folder)["img_size"] in (48, [48, 48])


def test_a_network_of_timm_that_torchvision_calls_alike(tmp_path: Path) -> None:
    """Its weights fit torchvision's, which answers otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shaken(timm.create_model("resnet18", num_classes=3, act_layer="gelu"), 64)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    converted = convert(tmp_path / "weights.pth", architecture="resnet18", model_kwargs=["act_layer=gelu"], **SHOWN)
    assert_answers_like(model, converted.folder, **SEEN)


def test_they_are_added_to_those_that_torchvisions_network_needs(tmp_path: Path) -> None:
    model = shaken(torchvision.models.get_model("mobilenet_v3_small", num_classes=3), 64)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    settings = {"architecture": "mobilenet_v3_small", "model_kwargs": ["drop_rate=0.2"], **SHOWN}
    converted = convert(tmp_path / "weights.pth", **settings)
    assert_answers_like(model, converted.folder, **SEEN)
    assert stored(converted.folder) == {"bn_eps": 1e-3, "drop_rate": 0.2}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["colour=red"], "timm cannot make test_resnet with colour='red' (TypeError"),
        (["act_layer"], "model_kwargs has 'act_layer', expected KEY=VALUE, such as act_layer=gelu"),
        (["=gelu"], "model_kwargs has '=gelu', expected KEY=VALUE"),
        (["act_layer=no_such"], "timm cannot make test_resnet with act_layer='no_such'"),
        (["checkpoint_path=x.pth"], "model_kwargs has checkpoint_path, which does not describe a network"),
        (["features_only=True", "out_indices=(1,)"], "model_kwargs has features_only, out_indices, which does not"),
        (["num_classes=3"], "model_kwargs has num_classes, which is the number of label names"),
        (["in_chans=1"], "model_kwargs has in_chans=1, expected 3 (RGB)"),
        (["img_size=48", "act_layer=gelu"], "image_size=64 and img_size=48 of model_kwargs differ: give one"),
        (["img_size=(48, 64)"], "model_kwargs has img_size=[48, 64], expected a side of up to 2048 pixels"),
        (["img_size=64"], "timm cannot make test_resnet with img_size=64"),
        ({"act_layer": torch.nn.GELU}, "model_kwargs has what is no plain value"),
        (["layers={1}"], "model_kwargs has what is no plain value"),
        (["layers=(999999,) * 4"], "timm cannot make test_resnet with layers='(999999,) * 4'"),
        (["layers=(999999, 999999, 9, 9)"], "is a much larger network than the weights in the file"),
    ],
    ids=str,
)
def test_what_cannot_be_obeyed_is_refused(given: Any, sentence: str, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    settings = {"architecture": "test_resnet", "image_size": 64, "model_kwargs": given}
    assert sentence in refusal(tmp_path / "weights.pth", **settings)
