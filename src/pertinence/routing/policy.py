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
from .sweep import Arrays, Watch, sweep
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
        abstained: bool (B,), images that are not answered: those that gave up, and those below the threshold.
        log_odds: float32 (B,), log-odds that each answer is right; None if the point has no certainty.
        gave_up: bool (B,), images that stopped early, as they would hardly be answered; None without a threshold.
        outlook: float32 (B,), see `Sweep`; None without a threshold.
        p_values: float32 (B,), how unlike the search images each image is; None: not looked for.
    """

    logits: torch.Tensor
    expert_indices: torch.Tensor
    experts_run: torch.Tensor
    costs: dict[str, torch.Tensor]
    scores: torch.Tensor
    abstained: torch.Tensor
    log_odds: torch.Tensor | None = None
    gave_up: torch.Tensor | None = None
    outlook: torch.Tensor | None = None
    p_values: torch.Tensor | None = None

    @property
    def confidence(self) -> torch.Tensor | None:
        """float32 (B,), the probability that each answer is right; None if the point has no certainty."""
        return None if self.log_odds is None else self.log_odds.sigmoid()

    @property
    def gmacs(self) -> torch.Tensor:
        return self.costs[GMACS]

    def to(self, device: torch.device | str) -> Routing:
        """A copy with everything but `costs` on a device."""
        moved = {name: values for name, values in vars(self).items() if name != "costs"}
        moved = {name: None if values is None else values.to(device) for name, values in moved.items()}
        return Routing(**moved, costs=self.costs)


def route(
    point: OperatingPoint,
    heads: Sequence[Head],
    run: Callable[[int, torch.Tensor], Outputs],
    count: int,
    costs: PoolCosts,
    device: torch.device | str = "cpu",
    tail: int = 1,
    threshold: float | None = None,
    watch: Watch | None = None,
    unlike: UnlikeRule | None = None,
) -> Routing:
    """Route `count` images through an operating point, see `routing.sweep.sweep`.

    Args:
        point, heads, count, costs, tail, threshold, watch, unlike: see there.
        run: returns the outputs of expert i (`STEM`: the stem) for the images of the given rows (rising, int64 (b,),
            on the CPU).
        device: where outputs are mixed.
    """

    def brought_of(member: int, rows: np.ndarray) -> Arrays:
        logits, features = run(member, torch.from_numpy(rows))
        return brought(logits, device), brought(features, device)

    swept = sweep(point, heads, brought_of, count, costs, tail, threshold, watch, unlike)
    routing = Routing(
        logits=_as_tensor(swept.logits),
        expert_indices=_as_tensor(swept.last),
        experts_run=_as_tensor(swept.ran),
        costs={unit: torch.from_numpy(values) for unit, values in swept.spent().items()},
        scores=_as_tensor(swept.scores),
        log_odds=_as_tensor(swept.log_odds),
        gave_up=_as_tensor(swept.gave_up),
        outlook=_as_tensor(swept.outlook),
        abstained=_as_tensor(swept.abstained),
        p_values=None if swept.p_values is None else torch.from_numpy(swept.p_values).float(),
    )
    return routing if isinstance(swept.logits, np.ndarray) else routing.to(device)


def _as_tensor(values: Any) -> Any:
    """An array as a tensor on the host, where `torch.as_tensor` would put it on the default device."""
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values


def is_host(device: torch.device | str) -> bool:
    """Whether outputs on this device are mixed with NumPy, which is faster than torch for a few images."""
    return torch.device(device).type == "cpu"


def brought(values: torch.Tensor | None, device: torch.device | str = "cpu") -> Array | None:
    """Move an output of an expert to where outputs are mixed."""
    if values is None:
        return None
    return values.cpu().numpy() if is_host(device) else values.to(device)
