"""Devices, processes and threads: one way to make an Accelerator, which reports a launcher whose processes would not
find each other; and work that runs on one thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import is_initialized
from accelerate.utils import broadcast_object_list
from threadpoolctl import threadpool_limits
from transformers.utils import logging

from .errors import PertinenceError
from .processes import quiet_other_processes


logger = logging.get_logger(__name__)

Made = TypeVar("Made")

LAUNCHERS = {"srun": "SLURM_STEP_NUM_TASKS", "mpirun": "OMPI_COMM_WORLD_SIZE", "mpiexec": "PMI_SIZE"}
"""Environment variables in which launchers say how many processes they started. SLURM_NTASKS does not serve: it is the
number that a job may start, and it is also set in a shell and for the single process of a batch script."""


def make_accelerator(device: str | None = None) -> Accelerator:
    """Make an Accelerator on the machine's accelerator, or on the CPU if there is no accelerator or `device` is "cpu".

    Raises:
        PertinenceError: the device does not exist, a launcher started processes that do not work together, or this
            process has used another device before.
    """
    _check_launcher()
    quiet_other_processes()
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    wanted = _parse(device)
    if wanted is not None and wanted.type != "cpu":
        if found is None or wanted.type != found.type or (wanted.index or 0) >= torch.accelerator.device_count():
            raise PertinenceError(
                f"there is no device {device!r} here; there is {found.type if found else 'only the CPU'}"
            )
    if is_initialized():
        _check_first(wanted, PartialState().device)
    if wanted is not None and wanted.type != "cpu" and wanted.index is not None:
        torch.accelerator.set_device_index(wanted.index)
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", str(wanted))
    # Without cpu=True, each process that torchrun starts on a CPU would believe that it is the only one.
    accelerator = Accelerator(cpu=found is None or (wanted is not None and wanted.type == "cpu"))
    _check_first(wanted, accelerator.device)
    expected = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != expected:
        raise PertinenceError(
            f"the launcher started {expected} processes, but accelerate sees {accelerator.num_processes}: start "
            "with torchrun"
        )
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if is_launched and "WORLD_SIZE" not in os.environ and accelerator.device.type == "cpu":
        logger.warning(
            "accelerate launch has started a single process: on CPUs it starts no more, whatever --num_processes "
            "says. For several: torchrun --nproc_per_node N -m pertinence ..."
        )
    return accelerator


def _check_first(wanted: torch.device | None, used: torch.device) -> None:
    """Refuse a device other than the first one of this process: accelerate cannot change it."""
    if wanted is None:
        return
    # A device without an index means the current one.
    if wanted.type != used.type or (None not in (wanted.index, used.index) and wanted.index != used.index):
        raise PertinenceError(
            f"this process has used {used} before, and accelerate keeps to the first device of a process: start "
            f"another process for {wanted}, or leave the device out"
        )


def _check_launcher() -> None:
    """Refuse processes that a launcher started without telling them how to find each other: each would do all the
    work."""
    if "WORLD_SIZE" in os.environ:
        return
    for launcher, variable in LAUNCHERS.items():
        count = os.environ.get(variable, "1")
        if count.isdigit() and int(count) > 1:
            raise PertinenceError(
                f"{launcher} started {count} processes that do not find each other: let it start one on each node, "
                "and have that start the others with torchrun"
            )


def by_main(accelerator: Accelerator, make: Callable[[], Made]) -> Made:
    """What the main process makes, in all processes; if it fails, its error is raised there, and the others end."""
    if accelerator.num_processes == 1:
        return make()
    made, error = None, None
    if accelerator.is_main_process:
        try:
            made = make()
        except BaseException as raised:
            error = raised
    made, has_failed = broadcast_object_list([made, error is not None])
    if error is not None:
        raise error
    if has_failed:
        raise SystemExit(1)
    return cast(Made, made)


def device_of(accelerator: Accelerator) -> torch.device:
    """The device of a process, as a model is moved to it: moved from `cpu` to `cpu:0`, which accelerate names where
    several processes share a CPU, weights would be copied to other addresses, and matrix products differ in last
    bits."""
    return torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device


def device_name(device: torch.device) -> str:
    """Name of a device in measurements: the model of a GPU, else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _parse(device: str | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except RuntimeError as error:
        raise PertinenceError(f"there is no device {device!r}: expected cpu, cuda, cuda:1, mps, ...") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and BLAS on one thread, so that the order of summation does not depend on the number of threads.

    Matrix products this small gain little from a second thread, and wait long for it when the cores are busy. To use
    more cores, start more processes.
    """
    outermost = not getattr(_contexts, "open", 0)
    with _changing_threads:
        if outermost:
            _threads_before.append(_threads_before[0] if _threads_before else torch.get_num_threads())
        torch.set_num_threads(1)
    _contexts.open = getattr(_contexts, "open", 0) + 1
    try:
        with threadpool_limits(1, "blas") if outermost else nullcontext():
            yield
    finally:
        _contexts.open -= 1
        if outermost:
            with _changing_threads:
                torch.set_num_threads(_threads_before.pop())


_changing_threads = threading.Lock()
_contexts = threading.local()
"""How many contexts are open in each thread: only the outermost one restores the number of threads."""
_threads_before: list[int] = []
"""The number of threads to restore, once for each thread with an open context: one that opens while that of another
thread is open would otherwise read 1 as the number to restore."""
