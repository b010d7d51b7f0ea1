"""A limit on the size of networks that are built from untrusted checkpoints.

transformers builds a network on the meta device, where its parameters take no memory, before it compares them with the
weights. That alone is no limit: a small config.json that asks for a million layers of one channel takes 15 minutes and
25 GB of modules. So parameters, buffers and modules are counted while they are made.
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
"""Allowance of elements, beyond four times those in the files, for buffers that are not saved."""
SPARE_MODULES = 10_000
"""Allowance of modules, beyond fifty for each tensor, for modules without weights."""


@dataclass
class _Budget:
    """The number of elements and modules that may still be built."""

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
    """Limit the networks that this thread builds within the context to about the size of their weights.

    Other threads are not limited.

    Args:
        tensors: headers of the checkpoint's weights.

    Raises:
        PertinenceError: the network has far more parameters, buffers or modules than its weights.
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


# These hooks are called for every module of the process, and do nothing outside of `building_from`. torch iterates
# over them whenever a thread builds a module, so they are registered once and never removed.
register_module_parameter_registration_hook(_count_tensor)
register_module_buffer_registration_hook(_count_tensor)
register_module_module_registration_hook(_count_module)
