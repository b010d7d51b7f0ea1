"""The policy, written once: evidence of what was run, one linear head per stage, answer or which expert next.

The model calls `route` on what its experts just said, the search on cached predictions, so that what the search scores
is what the model does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import PertinenceError
from .evidence import (
    CONFIDENCE,
    CONFIDENCE_BINS,
    NUM_KNOTS,
    evidence_size,
    known_of,
    log_softmax,
    mix,
    mix_evidence_size,
    stage_evidence,
)
from .front import STEM, Front, OperatingPoint, Stage


MAX_ELEMENTS = 2**27
"""Weights of all heads together: what a file claims must not decide how much memory is taken."""

Answer = tuple[torch.Tensor | None, torch.Tensor | None]
"""Logits (b, C) and pooled features (b, F) of one expert; features may be None where no head reads them, logits are
None for the stem."""


@dataclass
class Head:
    """Linear map of one stage from evidence to a score for each expert of the pool (its own position: answer now).

    Attributes:
        weight: float32 (N, E), or (P, N, E) for P heads at once.
        bias: float32 (N,), or (P, N).
        knots: float32 (8,), where the hinges of the evidence stand; None for "features".
    """

    weight: torch.Tensor
    bias: torch.Tensor
    knots: torch.Tensor | None = None

    def scores(self, evidence: torch.Tensor) -> torch.Tensor:
        """Evidence (B, E) to scores (B, N); of P heads at once (P, B, N)."""
        if self.weight.ndim == 2:
            return nn.functional.linear(evidence, self.weight, self.bias)
        return evidence @ self.weight.mT + self.bias.unsqueeze(-2)

    @property
    def gmacs(self) -> float:
        return self.weight.shape[-1] * self.weight.shape[-2] / 1e9


@dataclass
class Routing:
    """What became of B images.

    Attributes:
        logits: float32 (B, C).
        expert_indices: int64 (B,), the expert that ran last.
        experts_run: bool (B, N).
        gmacs: float64 (B,), every expert that ran and every head that decided.
        scores: float32 (B, decisions, N), NaN where a decision was not reached or an action is not allowed.
    """

    logits: torch.Tensor
    expert_indices: torch.Tensor
    experts_run: torch.Tensor
    gmacs: torch.Tensor
    scores: torch.Tensor


def choose(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The action of the largest score among the allowed ones, the cheapest of equals: (..., N), bool (N,) -> int64
    (...)."""
    return _choose_but(scores, ~allowed)


def _choose_but(scores: torch.Tensor, forbidden: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(forbidden, -torch.inf).argmax(-1)


def allowed_actions(point: OperatingPoint, stage: Stage, num_experts: int) -> torch.Tensor:
    """bool (N,): answer (the position of the expert that just ran), or a member later in the pool."""
    allowed = torch.zeros(num_experts, dtype=torch.bool)
    allowed[[member for member in point.members if member >= stage.after]] = True
    return allowed


@lru_cache(maxsize=4096)
def _forbidden_on(members: tuple[int, ...], after: int, num_experts: int) -> torch.Tensor:
    """All but `allowed_actions`: made once, not for every batch."""
    return ~allowed_actions(OperatingPoint("", "", members), Stage(after), num_experts)


def threshold_head(point: OperatingPoint, stage: Stage, threshold: float, num_experts: int) -> Head:
    """The head that goes on to the next member where the mixture's largest probability is below `threshold`.

    Answering scores 0, the next member threshold - confidence, any later one -1 (never chosen).
    """
    weight = torch.zeros(num_experts, mix_evidence_size(num_experts))
    bias = torch.full((num_experts,), -1.0)
    following = min(member for member in point.members if member > stage.after)
    bias[stage.after] = 0.0
    weight[following, CONFIDENCE] = -1.0
    bias[following] = threshold
    return Head(weight, bias, torch.zeros(NUM_KNOTS))


def route(
    point: OperatingPoint,
    heads: Sequence[Head],
    run: Callable[[int, torch.Tensor], Answer],
    count: int,
    expert_gmacs: Sequence[float],
    device: torch.device | str = "cpu",
    tail: int = 1,
    stem_gmacs: float = 0.0,
) -> Routing:
    """Send `count` images through an operating point.

    Members come in pool order and nobody goes back, so one sweep over them serves every image; the set of unanswered
    images only shrinks.

    Args:
        point: where to go and how to mix.
        heads: one for each of `point.decisions`, on the CPU.
        run: answers for expert i (`STEM`: the stem) on the images of the given rows (rising, int64 (b,), on the CPU);
            called at most once per expert.
        count: number of images, B.
        expert_gmacs: cost of each expert of the pool.
        device: where answers are mixed.
        tail: how many labels the last column of the answers stands for: predictions that are kept of many labels have
            one column for all those that no expert thought likely.
        stem_gmacs: cost of the separate stem.
    """
    num_experts, device = len(expert_gmacs), torch.device(device)
    # Who goes where, and why, is the host's to know: what a decision needs is copied there at once, and nothing else
    # waits for a device.
    following = np.full(count, point.order[0])
    ran = np.zeros((count, num_experts), dtype=bool)
    votes = np.zeros((count, num_experts), dtype=np.int64)
    scores = np.full((count, len(heads), num_experts), np.nan, dtype=np.float32)
    costs, for_all = np.array(expert_gmacs, dtype=float), 0.0
    logits = None
    log_probs: dict[int, torch.Tensor] = {}

    for member in point.order:
        rows = np.flatnonzero(following == member)
        if not len(rows):
            continue
        # Where everybody is meant nothing is gathered or scattered.
        here, rows = slice(None) if len(rows) == count else rows, torch.from_numpy(rows)
        there = here if isinstance(here, slice) else rows.to(device, non_blocking=True)

        def spread(values: torch.Tensor, of_all: torch.Tensor | None, there=there) -> torch.Tensor:
            """Put values of some images among those of all."""
            if isinstance(there, slice):
                return values
            if of_all is None:
                of_all = values.new_zeros(count, *values.shape[1:])
            of_all[there] = values
            return of_all

        own, features = run(member, rows)
        answer, stage = own, point.stage_after.get(member)
        if member == STEM:
            for_all += stem_gmacs
        else:
            own = answer = own.to(device)
            ran[here, member] = True
            if point.mixes:
                log_probs[member] = spread(log_softmax(own, tail), None)
            if stage is not None and stage.mixing is not None:
                # Of a member that nobody was sent to nothing is known, and nothing is mixed.
                mixed = [(m, w) for m, w in zip(point.members, stage.mixing, strict=False) if m in log_probs]
                answer = mix([log_probs[m][there] for m, _ in mixed], [weight for _, weight in mixed])
            # A copy: what `run` gave may be somebody else's.
            logits = spread(answer.clone() if answer is own else answer, logits)
        position = point.decision_after.get(member)
        if position is None:
            continue
        head = heads[position]
        # What a stem gives in the place of logits is no answer.
        known = known_of(stage.evidence, None if member == STEM else own, answer, features, tail).cpu().numpy()
        if member != STEM:
            votes[here, member], known = known[:, 0], known[:, 1:]
        evidence = stage_evidence(stage.evidence, known, votes[here], ran[here], head.knots)
        stage_scores = head.scores(torch.from_numpy(evidence))
        forbidden = _forbidden_on(point.members, member, num_experts)
        following[here] = _choose_but(stage_scores, forbidden).numpy()
        scores[here, position] = stage_scores.masked_fill_(forbidden, torch.nan).numpy()
        if member == STEM:
            for_all += head.gmacs
        else:
            costs[member] += head.gmacs
    last = num_experts - 1 - ran[:, ::-1].argmax(1)  # members come in pool order
    last, experts_run, scores = (torch.from_numpy(values).to(device) for values in (last, ran, scores))
    return Routing(logits, last, experts_run, torch.from_numpy(ran @ costs + for_all), scores)


class Dispatcher(nn.Module):
    """The heads of all operating points of a front, stacked per stage and kind of evidence.

    Args:
        front: whose points the heads belong to; row r of a stack is the r-th point of the front that has that stage.
        num_experts: size of the pool, N.
        feature_sizes: width of the pooled features of each expert by its index, and of the `STEM`.

    Attributes:
        answers: float32 (points, N, 32), whole numbers: `count_answers` of the report images at each point of the
            front; zeros where none were measured.
    """

    def __init__(self, front: Front, num_experts: int, feature_sizes: Mapping[int, int]):
        super().__init__()
        # The first stage always exists, so that a front of single experts is saved with a (then empty) tensor, too.
        stacked: dict[tuple[int, str], list[str]] = {(0, "features"): []}
        for point in front:
            for stage in point.decisions:
                stacked.setdefault((stage.after, stage.evidence), []).append(point.name)
        elements = len(front) * num_experts * CONFIDENCE_BINS + sum(
            len(names) * num_experts * evidence_size(evidence, num_experts, feature_sizes.get(after, 0))
            for (after, evidence), names in stacked.items()
        )
        if elements > MAX_ELEMENTS:
            raise PertinenceError(
                f"the heads of {len(front)} operating points would take {elements:,} weights, more than "
                f"{MAX_ELEMENTS:,}"
            )
        self.rows = {(name, *key): row for key, names in stacked.items() for row, name in enumerate(names)}
        self.stages = nn.ModuleDict()
        for (after, evidence), names in stacked.items():
            size = evidence_size(evidence, num_experts, feature_sizes.get(after, 0))
            self.stages[_stack_name(after, evidence)] = _StackedHeads(
                len(names), num_experts, size, evidence != "features"
            )
        self._names = [point.name for point in front]
        self._heads: dict[str, tuple[list[_StackedHeads], list[int], list[Head]]] = {}
        self.register_load_state_dict_post_hook(_forget_heads)
        # Where a file has none, nothing casts it back from the default type that transformers sets for the experts.
        counts = torch.zeros(len(front), num_experts, CONFIDENCE_BINS, dtype=torch.float32)
        self.answers = nn.Parameter(counts, requires_grad=False)

    def check(self, source: str) -> None:
        """Raise `PertinenceError` where weights that came from `source` are NaN or infinite, or counts negative."""
        for name, values in self.named_parameters():
            if not values.isfinite().all() or (values is self.answers and (values < 0).any()):
                raise PertinenceError(f"the heads of {source} hold impossible numbers ({name}): fetch them again")

    def heads(self, point: OperatingPoint) -> list[Head]:
        """The heads of one point, one for each of its decisions, in float32 on the CPU, where decisions are taken."""
        stacks, places, heads = self._heads.get(point.name, ((), (), ()))
        # On the CPU heads are views, which stay true as long as the stacks lie where they lie.
        if not heads or places != [stack.weight.data_ptr() for stack in stacks]:
            stacks = [self._stack(stage) for stage in point.decisions]
            places = [stack.weight.data_ptr() for stack in stacks]
            with torch.inference_mode(False):
                heads = [
                    stack[self.rows[point.name, stage.after, stage.evidence]]
                    for stack, stage in zip(stacks, point.decisions, strict=True)
                ]
            self._heads[point.name] = stacks, places, heads
        return heads

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_heads": {}}

    @torch.no_grad()
    def set_heads(self, point: OperatingPoint, heads: Sequence[Head]) -> None:
        """Store the heads of one point; raises `PertinenceError` where a shape does not fit its stage."""
        for stage, head in zip(point.decisions, heads, strict=True):
            self._stack(stage).store(self.rows[point.name, stage.after, stage.evidence], head, point.name)
        _forget_heads(self)

    def answers_of(self, point: OperatingPoint) -> torch.Tensor:
        """How the report images were answered at one point, see `count_answers`: int64 (N, 32)."""
        return self.answers[self._names.index(point.name)].long()

    @torch.no_grad()
    def set_answers(self, point: OperatingPoint, counts: torch.Tensor) -> None:
        """Store `count_answers` of the report images at one point."""
        self.answers[self._names.index(point.name)] = counts.to(self.answers)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Dispatcher:
        """Moved with the model, but never cast with it: decisions stay float32 whatever the experts are."""
        _forget_heads(self)
        return super()._apply(lambda t: fn(t) if t.is_meta else t.to(fn(t[:0]).device), recurse)

    def _stack(self, stage: Stage) -> _StackedHeads:
        return self.stages[_stack_name(stage.after, stage.evidence)]


def _forget_heads(dispatcher: Dispatcher, *_: Any) -> None:
    """Those of an accelerator are copies, which do not follow when the stacks change."""
    dispatcher._heads.clear()


def _stack_name(after: int, evidence: str) -> str:
    return f"{'stem' if after == STEM else after}_{evidence}"


class _StackedHeads(nn.Module):
    def __init__(self, count: int, num_experts: int, size: int, has_knots: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, num_experts, size), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(count, num_experts), requires_grad=False)
        self.knots = nn.Parameter(torch.zeros(count, NUM_KNOTS), requires_grad=False) if has_knots else None

    def __getitem__(self, row: int) -> Head:
        tensors = (self.weight, self.bias, self.knots)
        return Head(*(None if values is None else values[row].float().cpu() for values in tensors))

    def store(self, row: int, head: Head, name: str) -> None:
        if head.weight.shape != self.weight.shape[1:] or head.bias.shape != self.bias.shape[1:]:
            raise PertinenceError(
                f"operating point {name!r}: a head has shape {tuple(head.weight.shape)}, its stage takes "
                f"{tuple(self.weight.shape[1:])}"
            )
        self.weight[row], self.bias[row] = head.weight, head.bias
        if self.knots is not None:
            self.knots[row] = head.knots
