"""Writing and hashing tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from .hashing import hash_arrays
from .io import give_usual_mode


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the usual mode of new files."""
    save_file(dict(tensors), path, metadata=metadata)
    give_usual_mode(path)


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """The hash of tensors, see `hash_arrays`."""
    return hash_arrays({name: _as_array(tensor.detach()) for name, tensor in tensors.items()})


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
