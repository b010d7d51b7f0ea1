"""The policy (router): evidence of what has run, one linear head per stage, and its decision to exit or to defer.

Everything that decides goes through `sweep`: the model and the reports by `routing.policy`, and the runtime without
torch by itself. The objectives of a search (`search/recipes`) are vectorised equivalents; tests check that they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from ..utils.errors import PertinenceError
from .costs import STEM, PoolCosts
from .evidence import Known, computed, no_votes, observe
from .front import OperatingPoint, Stage
from .heads import Head
from .mixing import Array, ArrayT, beside, log_softmax, mix, summary
from .registry import EVIDENCE
from .unlike import ABSTAIN, REFERENCE, SearchEntropies, UnlikeRule, entropies


Arrays: TypeAlias = "tuple[Array | None, Array | None]"
"""Outputs of an expert: logits (b, C), None for the stem; and pooled features (b, F), None if no head reads them."""
Watch: TypeAlias = Callable[[int, np.ndarray, Array], None]


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
    threshold: float | None = None,
    watch: Watch | None = None,
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
        threshold: log-odds of being right below which an image is not answered; one whose final answer will hardly
            reach them gives up as soon as that is seen. None: every image is answered. The point must have a
            `certainty`.
        watch: called after each member but the stem has run, with its index, the rows and their answers.
        unlike: what is done with images that are unlike the search images; None: they are not looked for.
    """
    if threshold is not None and unlike is not None and unlike.action == REFERENCE:
        raise PertinenceError(
            "ood_action='reference' replaces answers after their error rate was promised: choose 'abstain', 'ignore' "
            "or give no max_error_rate"
        )
    own: Any  # an `Array`, or None for the stem
    swept = Sweep(point, count, costs, tail, threshold)
    # What a decision needs is copied to the host in one transfer; nothing else waits for a device.
    for member in point.order:
        if member not in swept.asked:
            continue
        rows = (swept.following == member).nonzero()[0]
        own, features = run(member, rows)
        # If all images are meant, nothing is gathered or scattered.
        here = there = slice(None) if len(rows) == count else rows
        if len(rows) < count and own is not None:
            there = beside(rows, own)
        swept.pay(member, here)
        answer = None if member == STEM else swept.answer(member, own, here, there)
        if watch is not None and answer is not None:
            watch(member, rows, answer)
        position = point.decision_after.get(member)
        if position is not None:
            swept.decide(member, position, heads[position], own, answer, features, here)
    swept.conclude()
    if unlike is not None and point.entropies is not None:
        swept.look_for(unlike, point.entropies, run)
    return swept


class Sweep:
    """One sweep over the members of an operating point, and its result; all but `logits` and what is computed of them
    stays on the host.

    Attributes:
        logits: float32 (B, C), the answers, where the experts gave theirs.
        last: int64 (B,), the expert that ran last.
        ran: bool (B, N), which experts ran.
        scores: float32 (B, decisions, N), NaN where a decision was not reached or an action is not allowed.
        gave_up: bool (B,), images that a decision would have sent on, but that would hardly be answered then; None
            without a threshold.
        outlook: float32 (B,), the least log-odds that a decision forecast for the final answer of an image that it
            sent on, infinite if none did; None without a threshold.
        log_odds: float32 (B,), log-odds that each answer is right, where the logits are; None if the point has no
            certainty. An image that gave up has those of the answer that it stopped with.
        abstained: bool (B,), images that are not answered: those that gave up, and those below the threshold.
        p_values: float64 (B,), how unlike the search images each image is (see `unlike`); None: not looked for.
    """

    logits: Array
    log_odds: Array | None
    abstained: Array
    gave_up: np.ndarray | None = None
    outlook: np.ndarray | None = None
    p_values: np.ndarray | None = None

    def __init__(self, point: OperatingPoint, count: int, costs: PoolCosts, tail: int, threshold: float | None = None):
        self.point, self.count, self.costs, self.tail = point, count, costs, tail
        self.threshold = threshold
        if threshold is not None:
            self.gave_up, self.outlook = np.zeros(count, dtype=bool), np.full(count, np.inf, dtype=np.float32)
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
        # Summaries of answers that decisions have read, and the members that they are of.
        self.summaries: np.ndarray | None = None
        self.summarised = np.full(count, -1)

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

    def look_for(self, unlike: UnlikeRule, known: SearchEntropies, run: Callable[[int, np.ndarray], Arrays]) -> None:
        """Find how unlike the search images each image is, and do what is to be done with those that are."""
        self.p_values = known.p_values(entropies(self.logits, self.tail))
        if unlike.action == ABSTAIN:
            found: Any = beside(unlike.are_unlike(self.p_values), self.abstained)
            self.abstained = self.abstained | found
        elif len(rows := unlike.diverts(self.p_values, self.ran)):
            own: Any = run(unlike.reference, rows)[0]
            self.replace(unlike.reference, own, rows)

    def replace(self, member: int, own: Array, rows: np.ndarray) -> None:
        """Let one expert, which has not run on them, answer the images of some rows by itself: how certain it is of
        them is not known."""
        there = beside(rows, own)
        self.pay(member, rows)
        logits: Any = self.logits  # of either library, as `own`
        logits[there] = own
        log_odds: Any = self.log_odds
        if log_odds is not None:
            log_odds[there] = float("nan")

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
        # A stem has no logits, so its output is not a prediction, and no image gives up there.
        forecasts = self.threshold is not None and member != STEM
        reads = (*evidence.reads, "summary") if forecasts and "summary" not in evidence.reads else evidence.reads
        label, seen = observe(reads, None if member == STEM else own, answer, features, self.tail)
        if label is not None:
            self.votes[here, member] = label
        if isinstance(own, np.ndarray) and "summary" in seen:
            self._keep_summaries(member, here, seen["summary"])
        known = Known(self.votes[here], tail=self.tail, **seen)
        scores = head.scores(computed(evidence, known, head.fitted))
        allowed = _allowed(self.point.members, member, self.costs.num_experts)
        chosen = choose(scores, allowed)
        if forecasts:
            self._give_up(member, seen["summary"], chosen, here)
        self.following[here] = chosen
        self.asked.update(chosen.tolist())
        self.scores[here, position] = np.where(allowed, scores, np.nan)
        for unit, steps in self.steps.items():
            price = self.costs.of_head(unit, head.size)
            if member == STEM:
                self.before[unit] += price
            else:
                steps[here, member] += price

    def _give_up(self, member: int, seen: np.ndarray, chosen: np.ndarray, here: Any) -> None:
        """Let images stop, in `chosen`, that a decision sends on and that will hardly be answered then."""
        assert self.point.certainty is not None
        assert self.outlook is not None
        assert self.gave_up is not None
        forecast = self.point.certainty.forecast(self.point, member, seen)
        if forecast is None:
            return
        goes_on = chosen != member
        self.outlook[here] = np.where(goes_on, np.minimum(self.outlook[here], forecast), self.outlook[here])
        self.gave_up[here] = stops = goes_on & (forecast < self.threshold)
        chosen[stops] = member

    def _keep_summaries(self, member: int, here: Any, seen: np.ndarray) -> None:
        if self.summaries is None:
            self.summaries = np.empty((self.count, seen.shape[1]), dtype=seen.dtype)
        self.summaries[here], self.summarised[here] = seen, member

    def _summary(self) -> Array:
        """The summary of every answer, of which decisions may have read some already."""
        left = (self.summarised != self.last).nonzero()[0]
        if self.summaries is None or len(left) == self.count:
            return summary(self.logits, self.tail)
        if len(left):
            self.summaries[left] = summary(self.logits[left], self.tail)
        return self.summaries

    def conclude(self) -> None:
        """Find how certain the answers are, and which images are not answered."""
        point, certainty = self.point, self.point.certainty
        self.log_odds = None
        if certainty is not None:
            self.log_odds = certainty.log_odds(point, self.last, self.gave_up, self._summary())
        if self.threshold is None or self.log_odds is None:
            self.abstained = np.zeros(self.count, dtype=bool)
            return
        assert self.gave_up is not None
        gave_up: Any = beside(self.gave_up, self.log_odds)
        self.abstained = gave_up | (self.log_odds < self.threshold)

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
