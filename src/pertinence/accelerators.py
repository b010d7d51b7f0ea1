"""One way to make an Accelerator, which says so where a launcher's processes would not find each other."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from transformers.utils import logging

from .errors import PertinenceError


logger = logging.get_logger(__name__)


def make_accelerator(device: str | None = None) -> Accelerator:
    """An Accelerator on the machine's accelerator, or on the CPU where there is none or `device` is "cpu".

    Raises:
        PertinenceError: the device is not there, or a launcher started processes that do not work together.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    wanted = _parse(device)
    if wanted is not None and wanted.type != "cpu":
        if found is None or wanted.type != found.type or (wanted.index or 0) >= torch.accelerator.device_count():
            raise PertinenceError(
                f"there is no device {device!r} here; there is {found.type if found else 'only the CPU'}"
            )
        if wanted.index is not None:
            torch.accelerator.set_device_index(wanted.index)
            os.environ.setdefault("ACCELERATE_TORCH_DEVICE", str(wanted))
    # Without cpu=True every process that torchrun starts on a CPU would take itself for the only one.
    accelerator = Accelerator(cpu=found is None or device == "cpu")
    expected = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != expected:
        raise PertinenceError(
            f"the launcher started {expected} processes, but accelerate sees {accelerator.num_processes}: start "
            "with torchrun"
        )
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ and found is None:
        logger.warning(
            "accelerate launch has started a single process: on CPUs it starts no more, whatever --num_processes "
            "says. For several: torchrun --nproc_per_node N -m pertinence ..."
        )
    return accelerator


def device_name(device: torch.device) -> str:
    """What latency was measured on: the model of a GPU, else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _parse(device: str | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except RuntimeError as error:
        raise PertinenceError(f"there is no device {device!r}: expected cpu, cuda, cuda:1, mps, ...") from error
