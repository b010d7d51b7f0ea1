"""The policy (router): evidence of what has run, one linear head per stage, and its decision to exit or to defer.

Everything that decides goes through `sweep`: the model and the reports by `routing.policy`, and the runtime without
torch by itself. The objectives of a search (`search/recipes`) are vectorised equivalents; tests check that they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from .costs import STEM, PoolCosts
from .evidence import Known, computed, no_votes, observe
from .front import OperatingPoint, Stage
from .heads import Head
from .mixing import Array, ArrayT, library, log_softmax, mix
from .registry import EVIDENCE
from .unlike import UnlikeRule, entropies


Arrays: TypeAlias = "tuple[Array | None, Array | None]"
"""Outputs of an expert: logits (b, C), None for the stem; and pooled features (b, F), None if no head reads them."""


def choose(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed action with the largest score, of equal ones the cheapest: (..., N), bool (N,) -> int64 (...)."""
    return np.where(allowed, scores, -np.inf).argmax(-1)


def allowed_actions(point: OperatingPoint, stage: Stage, num_experts: int) -> np.ndarray:
    """bool (N,): exit (the position of the expert that just ran), or defer to a later member."""
    allowed = np.zeros(num_experts, dtype=bool)
    allowed[[member for member in point.members if member >= stage.after]] = True
    return allowed


@lru_cache(maxsize=4096)
def _allowed(members: tuple[int, ...], after: int, num_experts: int) -> np.ndarray:
    """The same, cached, so that it is not built again for every batch."""
    return allowed_actions(OperatingPoint("", "", members), Stage(after), num_experts)


def sweep(
    point: OperatingPoint,
    heads: Sequence[Head],
    run: Callable[[int, np.ndarray], Arrays],
    count: int,
    costs: PoolCosts,
    tail: int = 1,
    unlike: UnlikeRule | None = None,
) -> Sweep:
    """Route `count` images through an operating point.

    Members are in pool order and images only move forward, so one sweep over the members serves all images; the set of
    images without an answer only shrinks.

    Args:
        point: the operating point: which experts, which stages, and how to mix.
        heads: one for each of `point.decisions`.
        run: returns the outputs of expert i (`STEM`: the stem) for the images of the given rows (rising, int64 (b,));
            called at most once per expert. They are mixed where they are: on the host, or on an accelerator.
        count: number of images, B.
        costs: costs of the pool.
        tail: how many labels the last column of the logits stands for: predictions over many labels are cached with
            one column for all the labels that no expert found likely.
        unlike: what is done with images that are unlike the search images; None: they are not looked for.
    """
    own: Any  # an `Array`, or None for the stem
    swept = Sweep(point, count, costs, tail)
    # What a decision needs is copied to the host in one transfer; nothing else waits for a device.
    for member in point.order:
        if member not in swept.asked:
            continue
        rows = (swept.following == member).nonzero()[0]
        own, features = run(member, rows)
        # If all images are meant, nothing is gathered or scattered.
        here = there = slice(None) if len(rows) == count else rows
        if len(rows) < count and own is not None and not isinstance(own, np.ndarray):
            there = library(own).from_numpy(rows).to(own.device, non_blocking=True)
        swept.pay(member, here)
        answer = None if member == STEM else swept.answer(member, own, here, there)
        position = point.decision_after.get(member)
        if position is not None:
            swept.decide(member, position, heads[position], own, answer, features, here)
    if unlike is not None and point.entropies is not None:
        swept.p_values = point.entropies.p_values(entropies(swept.logits, tail))
        if len(rows := unlike.diverts(swept.p_values, swept.ran)):
            own, _ = run(unlike.reference, rows)
            swept.replace(unlike.reference, own, rows)
    return swept


class Sweep:
    """One sweep over the members of an operating point, and its result; all but `logits` stays on the host.

    Attributes:
        logits: float32 (B, C), the answers.
        last: int64 (B,), the expert that ran last.
        ran: bool (B, N), which experts ran.
        scores: float32 (B, decisions, N), NaN where a decision was not reached or an action is not allowed.
        p_values: float64 (B,), how unlike the search images each image is (see `unlike`); None: not looked for.
    """

    logits: Array
    p_values: np.ndarray | None = None

    def __init__(self, point: OperatingPoint, count: int, costs: PoolCosts, tail: int):
        self.point, self.count, self.costs, self.tail = point, count, costs, tail
        num_experts = costs.num_experts
        self.following, self.asked = np.full(count, point.order[0]), {point.order[0]}
        self.last = np.empty(count, dtype=np.int64)
        self.ran = np.zeros((count, num_experts), dtype=bool)
        self.votes = no_votes(count, num_experts)
        self.scores = np.full((count, len(point.decisions), num_experts), np.nan, dtype=np.float32)
        self.steps = {unit: np.zeros((count, num_experts)) for unit in costs.values}
        # What a separate stem and its head cost every image.
        self.before: dict[str, np.ndarray | float] = dict.fromkeys(costs.values, 0.0)
        self.log_probs: dict[int, Array] = {}

    def pay(self, member: int, here: Any) -> None:
        """Add the cost of running a member to some rows, and record that it has run."""
        for unit, steps in self.steps.items():
            price = self.costs.marginal(unit, member, self.ran[here])
            if member == STEM:
                self.before[unit] += price
            else:
                steps[here, member] = price
        if member != STEM:
            self.ran[here, member], self.last[here] = True, member

    def answer(self, member: int, own: Array, here: Any, there: Any) -> Array:
        """The result after a member has run, (b, C): its own logits, or the mixture of the members that have run."""
        answer, stage = own, self.point.stage_after.get(member)
        if self.point.mixes:
            self.log_probs[member] = _among_all(self.count, there, log_softmax(own, self.tail))
        if stage is not None and stage.mixing is not None:
            # A member that no image was deferred to has no outputs to mix.
            mixed = [(m, w) for m, w in zip(self.point.members, stage.mixing, strict=False) if m in self.log_probs]
            answer = mix([self.log_probs[m][there] for m, _ in mixed], [weight for _, weight in mixed])
        # Copy: the caller may own the outputs of `run`.
        self.logits = _among_all(self.count, there, answer, getattr(self, "logits", None))
        return answer

    def replace(self, member: int, own: Array, rows: np.ndarray) -> None:
        """Let one expert, which has not run on them, answer the images of some rows by itself."""
        there = rows if isinstance(own, np.ndarray) else library(own).from_numpy(rows).to(own.device)
        self.pay(member, rows)
        logits: Any = self.logits  # of either library, as `own`
        logits[there] = own

    def decide(
        self,
        member: int,
        position: int,
        head: Head,
        own: Array | None,
        answer: Array | None,
        features: Array | None,
        here: Any,
    ) -> None:
        """Decide for each image whether it exits or which member runs next."""
        evidence = EVIDENCE.require(self.point.decisions[position].evidence, "a stage")
        # A stem has no logits, so its output is not a prediction.
        label, seen = observe(evidence.reads, None if member == STEM else own, answer, features, self.tail)
        if label is not None:
            self.votes[here, member] = label
        known = Known(self.votes[here], tail=self.tail, **seen)
        scores = head.scores(computed(evidence, known, head.fitted))
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

    def spent(self) -> dict[str, np.ndarray]:
        """For each unit float64 (B,), the cost of every expert that ran and every head that decided."""
        # A matrix product, so that the order of summation does not depend on how many members ran on an image.
        ones = np.ones(self.costs.num_experts)
        return {unit: steps @ ones + self.before[unit] for unit, steps in self.steps.items()}


def _among_all(count: int, rows: Any, values: ArrayT, of_all: Any = None) -> ArrayT:
    """Scatter a copy of the values of some images into an array over all; the others keep `of_all`, or are zero."""
    if of_all is None:
        shape = (count, *values.shape[1:])
        of_all = np.zeros(shape, values.dtype) if isinstance(values, np.ndarray) else values.new_zeros(shape)
    of_all[rows] = values
    return of_all
