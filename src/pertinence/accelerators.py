"""One way to make an Accelerator, which says so where a launcher's processes would not find each other."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from .errors import PertinenceError


def make_accelerator(device: str | None = None) -> Accelerator:
    """An Accelerator on the machine's accelerator, or on the CPU where there is none or `device` is "cpu".

    Raises:
        PertinenceError: the device is not there, or a launcher started processes that do not work together.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device not in (None, "cpu") and (found is None or torch.device(device).type != found.type):
        raise PertinenceError(
            f"there is no device {device!r} here; there is {found.type if found else 'only the CPU'}"
        )
    # Without cpu=True every process that torchrun starts on a CPU would take itself for the only one.
    accelerator = Accelerator(cpu=found is None or device == "cpu")
    expected = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != expected:
        raise PertinenceError(
            f"the launcher started {expected} processes, but accelerate sees {accelerator.num_processes}: start "
            "with torchrun"
        )
    return accelerator
