"""The policy on tensors: the model calls `route` on the outputs of its experts, and every reported figure comes from
`route` on cached predictions. The decisions are those of `routing.sweep`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .costs import GMACS, PoolCosts
from .front import OperatingPoint
from .heads import Head
from .mixing import Array
from .sweep import Arrays, sweep
from .unlike import UnlikeRule


Outputs = tuple[torch.Tensor | None, torch.Tensor | None]
"""Outputs of an expert: logits (b, C) and pooled features (b, F); features may be None if no head reads them, logits
are None for the stem."""


@dataclass
class Routing:
    """The result of routing B images.

    Attributes:
        logits: float32 (B, C), the answers.
        expert_indices: int64 (B,), the expert that ran last.
        experts_run: bool (B, N), which experts ran.
        costs: for each unit float64 (B,), the cost of every expert that ran and every head that decided; on the CPU,
            as some accelerators have no float64.
        scores: float32 (B, decisions, N), NaN where a decision was not reached or an action is not allowed.
        p_values: float32 (B,), how unlike the search images each image is; None: not looked for.
    """

    logits: torch.Tensor
    expert_indices: torch.Tensor
    experts_run: torch.Tensor
    costs: dict[str, torch.Tensor]
    scores: torch.Tensor
    p_values: torch.Tensor | None = None

    @property
    def gmacs(self) -> torch.Tensor:
        return self.costs[GMACS]

    def to(self, device: torch.device | str) -> Routing:
        """A copy with everything but `costs` on a device."""
        moved: dict[str, Any] = {
            name: None if values is None else values.to(device)
            for name, values in vars(self).items()
            if name != "costs"
        }
        return Routing(**moved, costs=self.costs)


def route(
    point: OperatingPoint,
    heads: Sequence[Head],
    run: Callable[[int, torch.Tensor], Outputs],
    count: int,
    costs: PoolCosts,
    device: torch.device | str = "cpu",
    tail: int = 1,
    unlike: UnlikeRule | None = None,
) -> Routing:
    """Route `count` images through an operating point, see `routing.sweep.sweep`.

    Args:
        point, heads, count, costs, tail, unlike: see there.
        run: returns the outputs of expert i (`STEM`: the stem) for the images of the given rows (rising, int64 (b,),
            on the CPU).
        device: where outputs are mixed.
    """

    def brought_of(member: int, rows: np.ndarray) -> Arrays:
        logits, features = run(member, torch.from_numpy(rows))
        return brought(logits, device), brought(features, device)

    swept = sweep(point, heads, brought_of, count, costs, tail, unlike)
    # Not `torch.as_tensor`, which puts an array where the default device is.
    last, ran, scores = map(torch.from_numpy, (swept.last, swept.ran, swept.scores))
    spent = {unit: torch.from_numpy(values) for unit, values in swept.spent().items()}
    p_values = None if swept.p_values is None else torch.from_numpy(swept.p_values).float()
    logits: Any = swept.logits
    if isinstance(logits, np.ndarray):
        return Routing(torch.from_numpy(logits), last, ran, spent, scores, p_values)
    return Routing(logits, last, ran, spent, scores, p_values).to(device)


def is_host(device: torch.device | str) -> bool:
    """Whether outputs on this device are mixed with NumPy, which is faster than torch for a few images."""
    return torch.device(device).type == "cpu"


def brought(values: torch.Tensor | None, device: torch.device | str = "cpu") -> Array | None:
    """Move an output of an expert to where outputs are mixed."""
    if values is None:
        return None
    return values.cpu().numpy() if is_host(device) else values.to(device)
