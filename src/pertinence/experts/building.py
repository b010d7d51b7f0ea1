"""A budget for the networks that are built from a checkpoint whose config.json nobody vouches for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from ..utils.errors import PertinenceError
from .checkpoint_files import Tensors


SPARE_ELEMENTS = 2**24
"""Elements that a network may have beyond four times those of its files: buffers that are not saved."""
SPARE_MODULES = 10_000


@contextmanager
def building_from(tensors: Tensors) -> Iterator[None]:
    """Within it this thread builds no network that is much larger than its weights are; other threads do as they like.

    Raises:
        PertinenceError: it has far more parameters, buffers or modules.
    """
    watch_modules()
    before = getattr(_building, "left", None)
    _building.left = {
        "elements": 4 * tensors.elements + SPARE_ELEMENTS,
        "modules": 50 * len(tensors.shapes) + SPARE_MODULES,
    }
    try:
        yield
    finally:
        _building.left = before


_building = threading.local()


def _count(kind: str, amount: int) -> None:
    left = getattr(_building, "left", None)
    if left is not None:
        left[kind] -= amount
        if left[kind] < 0:
            raise PertinenceError("its config.json describes a much larger network than its weights are")


def _count_elements(_: nn.Module, __: str, tensor: torch.Tensor | None) -> None:
    _count("elements", 0 if tensor is None else tensor.numel())


def watch_modules() -> None:
    """Have torch tell what is built, from the first checkpoint on and for good: torch walks over its hooks whenever
    any thread builds a module, so that none may come and go meanwhile."""
    with _watching:
        if not _hooks:
            _hooks.append(registration.register_module_parameter_registration_hook(_count_elements))
            _hooks.append(registration.register_module_buffer_registration_hook(_count_elements))
            _hooks.append(registration.register_module_module_registration_hook(lambda *_: _count("modules", 1)))


_watching = threading.Lock()
_hooks: list[Any] = []
