"""Writing and hashing tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from .io import give_usual_mode


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the usual mode of new files."""
    save_file(dict(tensors), path, metadata=metadata)
    give_usual_mode(path)


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, shapes and values, with floating-point values cast to float32, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        digest.update(f"{name}\0{tuple(values.shape)}\0".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
