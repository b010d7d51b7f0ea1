"""Helpers for torch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def keeping_dtype(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that `nn.Module.to` and the like apply to each tensor, without the change of dtype."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move


def first_parameter(module: nn.Module) -> tuple[nn.Module, torch.Tensor] | None:
    """The first floating-point parameter of a module, and the module that owns it; None if there is none.

    The same as the first of `module.parameters()`, in a twentieth of the time: it is asked for every batch, as
    parameters may be replaced at any time.
    """
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return module, parameter
    for child in module._modules.values():
        if child is not None and (found := first_parameter(child)) is not None:
            return found
    return None


def execution_device(owner: nn.Module, parameter: torch.Tensor) -> torch.device:
    """The device that a module computes on: that of its parameter, or where accelerate takes one that is offloaded."""
    if not parameter.is_meta:
        return parameter.device
    hook: Any = getattr(owner, "_hf_hook", None)
    devices = [getattr(one, "execution_device", None) for one in getattr(hook, "hooks", [hook])]
    return next((torch.device(device) for device in devices if device is not None), parameter.device)
