"""A limit on the networks that are built from the checkpoint of an unknown author.

transformers builds a network on the meta device, where its parameters take no memory, before it compares them with the
weights. That alone limits nothing: a small config.json that asks for a million layers of one channel keeps it busy for
a quarter of an hour and takes 25 GB of modules. So parameters, buffers and modules are counted while they are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ..utils.errors import PertinenceError
from .checkpoint_files import Tensors


SPARE_ELEMENTS = 2**24
"""Elements that a network may have beyond four times those of its files: buffers that are not saved."""
SPARE_MODULES = 10_000
"""Modules that a network may have beyond fifty for each of its tensors: some have no weights."""


@dataclass
class _Budget:
    """How much may still be built."""

    elements: int
    modules: int

    def take(self, elements: int = 0, modules: int = 0) -> None:
        self.elements -= elements
        self.modules -= modules
        if self.elements < 0 or self.modules < 0:
            raise PertinenceError("its config.json describes a much larger network than its weights are")


_budget: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextmanager
def building_from(tensors: Tensors) -> Iterator[None]:
    """Within this context this thread builds no network that is much larger than its weights are.

    Other threads are not limited.

    Args:
        tensors: those of the checkpoint.

    Raises:
        PertinenceError: the network has far more parameters, buffers or modules.
    """
    token = _budget.set(
        _Budget(4 * tensors.elements + SPARE_ELEMENTS, 50 * len(tensors.shapes) + SPARE_MODULES),
    )
    try:
        yield
    finally:
        _budget.reset(token)


def _count_tensor(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    if (budget := _budget.get()) is not None and tensor is not None:
        budget.take(elements=tensor.numel())


def _count_module(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    if (budget := _budget.get()) is not None:
        budget.take(modules=1)


# These hooks are for every module of the process, and do nothing outside of `building_from`. torch iterates over them
# whenever a thread builds a module, so they are registered once and stay.
register_module_parameter_registration_hook(_count_tensor)
register_module_buffer_registration_hook(_count_tensor)
register_module_module_registration_hook(_count_module)
