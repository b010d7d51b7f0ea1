"""What no graph holds: decisions stay outside of compiled and traced graphs, and give no gradients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from transformers.utils import logging

from .errors import PertinenceError


logger = logging.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

DECIDES = "which experts run is decided for each image, which no graph can hold"
_REASON = (
    {"reason": f"{DECIDES}: compile the experts with compile_experts(), and what is around them without fullgraph"}
    if "reason" in inspect.signature(torch.compiler.disable).parameters
    else {}
)


def outside_graphs(method: Callable[P, R]) -> Callable[P, R]:
    """Make a method run eagerly, also within a compiled function: its graph breaks there.

    A compiler would translate NumPy to torch, whose results differ, and a trace would record the decisions of one
    batch: `torch.jit.trace` and `torch.export` are refused with a `PertinenceError`.
    """

    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # this is not compiled itself, so an export runs it
            raise untraceable()
        logger.warning_once(
            "torch.compile leaves the model eager where it decides, with all its experts: call "
            "model.compile_experts() to compile their networks."
        )
        return method(*args, **kwargs)

    eager, eager_and_told = (torch.compiler.disable(function, **_REASON) for function in (method, told))

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # the compiler takes it for true: it sees no more than the next line
            return eager_and_told(*args, **kwargs)
        if torch.jit.is_tracing():
            raise untraceable()
        return eager(*args, **kwargs)

    return wrapper


def untraceable() -> PertinenceError:
    """The error of what would record a whole model."""
    return PertinenceError(
        f"the model cannot be traced or exported as a whole: {DECIDES}; export the network of each expert "
        "(`model.experts[i].model`), or compile with `model.compile_experts()`"
    )


class _Gradient(torch.autograd.Function):
    """The identity, whose gradient is refused."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise PertinenceError(
            "the answers of this model have no gradients, so that it cannot be trained: its experts are frozen, and a "
            "search fits its dispatcher; fine-tune an expert on its own (`model.experts[i].model`), then search again"
        )


def without_gradient(values: torch.Tensor) -> torch.Tensor:
    """The values, whose `backward` raises a `PertinenceError`, if gradients are recorded."""
    return _Gradient.apply(values, values.new_zeros((), requires_grad=True)) if torch.is_grad_enabled() else values
