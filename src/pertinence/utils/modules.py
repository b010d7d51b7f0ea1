"""What is done to modules of torch."""

from __future__ import annotations

from collections.abc import Callable

import torch


def keeping_dtype(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `nn.Module.to` and the like do to each tensor, but for the cast."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
