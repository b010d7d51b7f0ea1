"""Helpers for torch modules."""

from __future__ import annotations

from collections.abc import Callable

import torch


def keeping_dtype(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that `nn.Module.to` and the like apply to each tensor, without the change of dtype."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
