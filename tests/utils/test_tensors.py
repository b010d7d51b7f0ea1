"""Tensors as files, and their hash."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from pertinence.utils.tensors import hash_tensors, save_tensors


def test_a_file_of_tensors_has_the_mode_of_any_new_file(tmp_path):
    tensors = {"one": torch.arange(6.0).reshape(2, 3), "two": torch.tensor([True, False])}
    save_tensors(tensors, tmp_path / "file.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "file.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.safetensors", "other"]
    loaded = load_file(tmp_path / "file.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_hash_is_of_names_shapes_and_numbers():
    tensor = torch.arange(6.0).reshape(2, 3)
    known = hash_tensors({"a": tensor, "b": tensor})
    assert hash_tensors({"b": tensor.clone(), "a": tensor.double()}) == known  # in any order and float dtype
    others = [{"a": tensor}, {"a": tensor, "c": tensor}, {"a": tensor.T, "b": tensor}, {"a": tensor + 1, "b": tensor}]
    assert len({known, *map(hash_tensors, others)}) == 5
