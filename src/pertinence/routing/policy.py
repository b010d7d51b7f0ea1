"""The policy (deferral rule): evidence of what has run, one linear head per stage, exit or which expert next.

The model calls `route` on what its experts just gave, and every figure that is reported comes from `route` on cached
predictions. The objectives of a search (`search/recipes`) are vectorised equivalents, which tests hold to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .costs import GMACS, STEM, PoolCosts
from .evidence import Known, no_votes, observe
from .front import OperatingPoint, Stage
from .heads import Head
from .mixing import Array, log_softmax, mix
from .registry import EVIDENCE


Outputs = tuple[torch.Tensor | None, torch.Tensor | None]
"""What an expert gives: logits (b, C) and pooled features (b, F); features may be None where no head reads them,
logits are None for the stem."""


@dataclass
class Routing:
    """What became of B images.

    Attributes:
        logits: float32 (B, C), the answers.
        expert_indices: int64 (B,), the expert that ran last.
        experts_run: bool (B, N).
        costs: for each unit float64 (B,) on the CPU, as some accelerators have no float64; every expert that ran and
            every head that decided.
        scores: float32 (B, decisions, N), NaN where a decision was not reached or an action is not allowed.
    """

    logits: torch.Tensor
    expert_indices: torch.Tensor
    experts_run: torch.Tensor
    costs: dict[str, torch.Tensor]
    scores: torch.Tensor

    @property
    def gmacs(self) -> torch.Tensor:
        return self.costs[GMACS]

    def to(self, device: torch.device) -> Routing:
        """The same, with all but `costs` on a device."""
        moved = {name: values.to(device) for name, values in vars(self).items() if name != "costs"}
        return Routing(**moved, costs=self.costs)


def choose(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The action of the largest score among the allowed ones, the cheapest of equals: (..., N), bool (N,) -> int64
    (...)."""
    return np.where(allowed, scores, -np.inf).argmax(-1)


def allowed_actions(point: OperatingPoint, stage: Stage, num_experts: int) -> np.ndarray:
    """bool (N,): exit (the position of the expert that just ran), or a member later in the pool."""
    allowed = np.zeros(num_experts, dtype=bool)
    allowed[[member for member in point.members if member >= stage.after]] = True
    return allowed


@lru_cache(maxsize=4096)
def _allowed(members: tuple[int, ...], after: int, num_experts: int) -> np.ndarray:
    """The same, made once and not for every batch."""
    return allowed_actions(OperatingPoint("", "", members), Stage(after), num_experts)


def route(
    point: OperatingPoint,
    heads: Sequence[Head],
    run: Callable[[int, torch.Tensor], Outputs],
    count: int,
    costs: PoolCosts,
    device: torch.device | str = "cpu",
    tail: int = 1,
) -> Routing:
    """Send `count` images through an operating point.

    Members come in pool order and no image goes back, so one sweep over them serves every image; the set of images
    without an answer only shrinks.

    Args:
        point: where to go and how to mix.
        heads: one for each of `point.decisions`, on the CPU.
        run: outputs of expert i (`STEM`: the stem) for the images of the given rows (rising, int64 (b,), on the CPU);
            called at most once per expert.
        count: number of images, B.
        costs: of the pool.
        device: where answers are mixed.
        tail: how many labels the last column of the answers stands for: predictions that are kept of many labels have
            one column for all those that no expert thought likely.
    """
    sweep = _Sweep(point, count, costs, is_host(device), tail)
    # What a decision needs is copied to the host at once, and nothing else waits for a device.
    for member in point.order:
        if member not in sweep.asked:
            continue
        rows = (sweep.following == member).nonzero()[0]
        own, features = (brought(values, device) for values in run(member, torch.from_numpy(rows)))
        # Where all images are meant nothing is gathered or scattered.
        here = there = slice(None) if len(rows) == count else rows
        if len(rows) < count and not sweep.on_host:
            there = torch.from_numpy(rows).to(device, non_blocking=True)
        sweep.pay(member, here)
        answer = None if member == STEM else sweep.answer(member, own, here, there)
        position = point.decision_after.get(member)
        if position is not None:
            sweep.decide(member, position, heads[position], own, answer, features, here)
    routing = sweep.routing()
    return routing if sweep.on_host else routing.to(device)


class _Sweep:
    """One sweep over the members of an operating point: who goes where, and why, is the host's to know."""

    def __init__(self, point: OperatingPoint, count: int, costs: PoolCosts, on_host: bool, tail: int):
        self.point, self.count, self.costs, self.on_host, self.tail = point, count, costs, on_host, tail
        num_experts = costs.num_experts
        self.following, self.asked = np.full(count, point.order[0]), {point.order[0]}
        self.last = np.empty(count, dtype=np.int64)
        self.ran = np.zeros((count, num_experts), dtype=bool)
        self.votes = no_votes(count, num_experts)
        self.scores = np.full((count, len(point.decisions), num_experts), np.nan, dtype=np.float32)
        self.steps = {unit: np.zeros((count, num_experts)) for unit in costs.values}
        self.before = dict.fromkeys(costs.values, 0.0)  # what a separate stem and its head cost every image
        self.logits: Array | None = None
        self.log_probs: dict[int, Array] = {}

    def pay(self, member: int, here: Any) -> None:
        """Charge the images of some rows for running a member, and note that it has run."""
        for unit, steps in self.steps.items():
            price = self.costs.marginal(unit, member, self.ran[here])
            if member == STEM:
                self.before[unit] += price
            else:
                steps[here, member] = price
        if member != STEM:
            self.ran[here, member], self.last[here] = True, member

    def answer(self, member: int, own: Array, here: Any, there: Any) -> Array:
        """The answer after a member has run: its own logits, or the mixture of those that have run: (b, C)."""
        answer, stage = own, self.point.stage_after.get(member)
        if self.point.mixes:
            self.log_probs[member] = _among_all(self.count, there, log_softmax(own, self.tail))
        if stage is not None and stage.mixing is not None:
            # Of a member that no image was sent to nothing is known, and nothing is mixed.
            mixed = [(m, w) for m, w in zip(self.point.members, stage.mixing, strict=False) if m in self.log_probs]
            answer = mix([self.log_probs[m][there] for m, _ in mixed], [weight for _, weight in mixed])
        # A copy: what `run` gave may belong to its caller.
        self.logits = _among_all(self.count, there, answer, self.logits)
        return answer

    def decide(
        self, member: int, position: int, head: Head, own: Array, answer: Array, features: Array, here: Any
    ) -> None:
        """Exit, or choose who runs next."""
        evidence = EVIDENCE.require(self.point.decisions[position].evidence, "a stage")
        # What a stem gives in the place of logits is no prediction.
        label, seen = observe(evidence.reads, None if member == STEM else own, answer, features, self.tail)
        if label is not None:
            self.votes[here, member] = label
        known = Known(self.votes[here], tail=self.tail, **seen)
        scores = head.scores(evidence.compute(known, head.fitted))
        allowed = _allowed(self.point.members, member, self.costs.num_experts)
        self.following[here] = chosen = choose(scores, allowed)
        self.asked.update(chosen.tolist())
        self.scores[here, position] = np.where(allowed, scores, np.nan)
        for unit, steps in self.steps.items():
            price = self.costs.of_head(unit, head.size)
            if member == STEM:
                self.before[unit] += price
            else:
                steps[here, member] += price

    def routing(self) -> Routing:
        # A product, as its sums come in the same order however many members an image has been through.
        ones = np.ones(self.costs.num_experts)
        costs = {unit: torch.from_numpy(steps @ ones + self.before[unit]) for unit, steps in self.steps.items()}
        tensors = map(torch.as_tensor, (self.logits, self.last, self.ran))
        return Routing(*tensors, costs, torch.as_tensor(self.scores))


def is_host(device: torch.device | str) -> bool:
    """Whether answers are mixed by numpy, which is quicker there than torch with a few images."""
    return torch.device(device).type == "cpu"


def brought(values: torch.Tensor | None, device: torch.device | str = "cpu") -> Array | None:
    """What an expert gave, to where answers are mixed."""
    if values is None:
        return None
    return values.cpu().numpy() if is_host(device) else values.to(device)


def _among_all(count: int, rows: Any, values: Array, of_all: Array | None = None) -> Array:
    """A copy of values of some images among those of all, zero for others unless given."""
    if of_all is None:
        shape = (count, *values.shape[1:])
        of_all = values.new_zeros(shape) if isinstance(values, torch.Tensor) else np.zeros(shape, values.dtype)
    of_all[rows] = values
    return of_all
