"""Files of training programs: which weights are taken from them, and that nothing in them runs."""

from __future__ import annotations

import argparse
import os
import pathlib
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pertinence import PertinenceError
from pertinence.experts.conversion.training_files import read_training_file


PLAIN = OrderedDict({"conv.weight": torch.full((2, 3), 1.0), "fc.bias": torch.full((2,), 1.0)})
AVERAGE = OrderedDict({name: torch.full_like(tensor, 2.0) for name, tensor in PLAIN.items()})
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def prefixed(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


FILES: dict[str, Any] = {
    "a state dict": PLAIN,
    "timm": {"arch": "resnet", "state_dict": PLAIN, "state_dict_ema": AVERAGE, "optimizer": OPTIMIZER},
    "DeiT": {"model": PLAIN, "model_ema": AVERAGE, "args": argparse.Namespace(model="deit_tiny"), "epoch": 3},
    "torchvision": {"model": PLAIN, "model_ema": {**prefixed("module.", AVERAGE), "n_averaged": torch.tensor(5)}},
    "Lightning with a callback": {
        "state_dict": prefixed("model.", PLAIN),
        "callbacks": {"EMA{'decay': 0.99}": {"ema_weights": prefixed("model.", AVERAGE)}},
        "optimizer_states": [OPTIMIZER],
        "hyper_parameters": {"lr": 0.1, "folder": pathlib.PurePosixPath("x").parts},
    },
    "Lightning with WeightAveraging": {
        "state_dict": AVERAGE,
        "current_model_state": PLAIN,
        "averaging_state": {"n_averaged": torch.tensor(5)},
    },
    "a module that contains its average": {
        "state_dict": {**prefixed("model.", PLAIN), **prefixed("ema_model.module.", AVERAGE)}
    },
    "a whole that is averaged": {"ema": {"decay": 0.9, "state_dict": AVERAGE}, "model_state_dict": PLAIN},
    "other state beside it": {"weights_of_net": PLAIN, "rng_state": torch.get_rng_state(), "optimizer": OPTIMIZER},
}
WITHOUT_AVERAGE = ("a state dict", "other state beside it")


@pytest.mark.parametrize("kind", FILES)
def test_the_weights_and_their_average_are_found(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    torch.save(FILES[kind], path)
    if kind in WITHOUT_AVERAGE:
        assert values(read_training_file(path).weights) == {1.0}
        with pytest.raises(PertinenceError, match=r"has no moving average \(EMA\): leave --ema out"):
            read_training_file(path, ema=True)
    else:
        found = read_training_file(path)
        assert values(found.weights) == {2.0}
        assert found.source.endswith("the moving average (EMA)")
        assert values(read_training_file(path, ema=True).weights) == {2.0}
    taken = read_training_file(path, ema=False)
    assert values(taken.weights) == {1.0}
    assert len(taken.weights) == len(PLAIN)


def values(weights: dict[str, torch.Tensor]) -> set[float]:
    """The numbers in weights, but for counters."""
    return {number for tensor in weights.values() if tensor.ndim for number in tensor.flatten().tolist()}


def test_an_average_alone_is_taken_only_as_such(tmp_path: Path) -> None:
    torch.save({"state_dict_ema": AVERAGE}, tmp_path / "file.pth")
    assert values(read_training_file(tmp_path / "file.pth").weights) == {2.0}
    with pytest.raises(PertinenceError, match="leave --no-ema out"):
        read_training_file(tmp_path / "file.pth", ema=False)


def test_a_model_of_swa_utils_is_read(tmp_path: Path) -> None:
    torch.save(AveragedModel(nn.Linear(2, 2)).state_dict(), tmp_path / "swa.pt")
    assert "module.weight" in read_training_file(tmp_path / "swa.pt").weights


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_numbers_of_numpy_and_paths_do_not_hinder(zipped: bool, tmp_path: Path) -> None:
    settings = argparse.Namespace(model="test_resnet", lr=0.1, output=Path("out"), seed=np.int64(3))
    content = {"state_dict": PLAIN, "args": settings, "metric": np.float64(71.5), "curve": np.zeros(3)}
    torch.save(content, tmp_path / "last.pth.tar", _use_new_zipfile_serialization=zipped)
    found = read_training_file(tmp_path / "last.pth.tar")
    assert found.architecture == "test_resnet"
    assert found.settings["lr"] == 0.1
    assert found.weights.keys() == PLAIN.keys()


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(dict(PLAIN), tmp_path / "model.safetensors")
    assert values(read_training_file(tmp_path / "model.safetensors").weights) == {1.0}


class Hostile:
    """When it is unpickled without restrictions, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


class Settings:
    pass


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["state_dict", "args", "callbacks"])
def test_code_in_a_file_is_refused_and_does_not_run(place: str, zipped: bool, tmp_path: Path) -> None:
    path, trap = tmp_path / "file.pt", tmp_path / "made by the file"
    torch.save({"model": PLAIN, place: Hostile(trap)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PertinenceError, match=r"holds posix\.mkdir, which only running code could restore"):
        read_training_file(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()


def test_whole_networks_and_other_objects_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "network.pt")
    with pytest.raises(PertinenceError, match=r"a whole pickled network or object \(torch\.nn.*save the weights"):
        read_training_file(tmp_path / "network.pt")
    torch.save({"model": PLAIN, "config": Settings()}, tmp_path / "object.pt")
    with pytest.raises(PertinenceError, match=r"holds .*Settings.*, which only running code could restore"):
        read_training_file(tmp_path / "object.pt")


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"state_dict": PLAIN}, path)
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[: len(whole) // 2], whole[:-40], b"\x80\x02}q\x00."):
        path.write_bytes(damaged)
        with pytest.raises(PertinenceError, match=r"file\.pth (is damaged|holds no weights)"):
            read_training_file(path)
    (tmp_path / "file.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(PertinenceError, match="is damaged"):
        read_training_file(tmp_path / "file.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    with pytest.raises(PertinenceError, match="TorchScript"):
        read_training_file(tmp_path / "script.pt")
    with pytest.raises(PertinenceError, match="there is no file"):
        read_training_file(tmp_path / "none.pth")
    with pytest.raises(PertinenceError, match="is a folder, expected a file"):
        read_training_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (OPTIMIZER, r"holds no weights by name \(state, param_groups\)"),
        ({"epoch": 3}, r"holds no weights by name \(epoch\)"),
        ([1, 2], r"holds no weights by name \(list\)"),
        (torch.ones(3), r"holds no weights by name \(Tensor\)"),
        ({"generator": PLAIN, "critic": PLAIN}, r"holds several networks \(generator, critic\)"),
        ({"state_dict": {"conv.weight": torch.ones(2, 3, device="meta")}}, "in a form that cannot be converted"),
        ({"state_dict": {"conv.weight": torch.eye(3).to_sparse()}}, "in a form that cannot be converted"),
    ],
)
def test_a_file_without_usable_weights_is_refused(content: Any, sentence: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(PertinenceError, match=sentence):
        read_training_file(tmp_path / "file.pt")
