"""The policy: evidence of what was run, one linear head per stage, answer or which expert next.

The model calls `route` on what its experts just said, and every figure that is reported comes from `route` on cached
predictions. A single image (`one_image`) and the objectives of a search (`recipes`, `cascade`, `thresholds`) go ways
of their own, which tests hold to the same policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import PertinenceError
from .evidence import (
    CONFIDENCE,
    CONFIDENCE_BINS,
    NUM_KNOTS,
    Array,
    evidence_size,
    known_of,
    log_softmax,
    mix,
    mix_evidence_size,
    no_votes,
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

    def scores(self, evidence: np.ndarray) -> np.ndarray:
        """Evidence (B, E) to scores (B, N); of P heads at once (P, B, N)."""
        weight, bias = self._arrays
        return evidence @ weight + bias

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return self.weight.numpy().mT, self.bias.numpy()[..., None, :]

    @cached_property
    def numbers(self) -> tuple[list[list[float]], list[float], list[float]]:
        """Weight, bias and knots of one head as plain numbers."""
        return self.weight.tolist(), self.bias.tolist(), self.knots.tolist()

    @cached_property
    def gmacs(self) -> float:
        return self.weight.shape[-1] * self.weight.shape[-2] / 1e9


@dataclass
class Routing:
    """What became of B images.

    Attributes:
        logits: float32 (B, C).
        expert_indices: int64 (B,), the expert that ran last.
        experts_run: bool (B, N).
        gmacs: float64 (B,) on the CPU, as some accelerators have no float64; every expert that ran and every head that
            decided.
        scores: float32 (B, decisions, N), NaN where a decision was not reached or an action is not allowed.
    """

    logits: torch.Tensor
    expert_indices: torch.Tensor
    experts_run: torch.Tensor
    gmacs: torch.Tensor
    scores: torch.Tensor

    def to(self, device: torch.device) -> Routing:
        """The same, with all but `gmacs` on a device."""
        moved = {name: values.to(device) for name, values in vars(self).items() if name != "gmacs"}
        return Routing(**moved, gmacs=self.gmacs)


def choose(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The action of the largest score among the allowed ones, the cheapest of equals: (..., N), bool (N,) -> int64
    (...)."""
    return np.where(allowed, scores, -np.inf).argmax(-1)


def allowed_actions(point: OperatingPoint, stage: Stage, num_experts: int) -> np.ndarray:
    """bool (N,): answer (the position of the expert that just ran), or a member later in the pool."""
    allowed = np.zeros(num_experts, dtype=bool)
    allowed[[member for member in point.members if member >= stage.after]] = True
    return allowed


@lru_cache(maxsize=4096)
def _allowed(members: tuple[int, ...], after: int, num_experts: int) -> np.ndarray:
    """The same, made once and not for every batch."""
    return allowed_actions(OperatingPoint("", "", members), Stage(after), num_experts)


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
    num_experts, on_host = len(expert_gmacs), is_host(device)
    # Who goes where, and why, is the host's to know: what a decision needs is copied there at once, and nothing else
    # waits for a device.
    following, asked = np.full(count, point.order[0]), {point.order[0]}
    last = np.empty(count, dtype=np.int64)
    ran = np.zeros((count, num_experts), dtype=bool)
    votes = no_votes(count, num_experts)
    scores = np.full((count, len(heads), num_experts), np.nan, dtype=np.float32)
    costs, for_all = np.array(expert_gmacs, dtype=float), 0.0
    logits = None
    log_probs: dict[int, Array] = {}

    for member in point.order:
        if member not in asked:
            continue
        rows = (following == member).nonzero()[0]
        own, features = (brought(values, device) for values in run(member, torch.from_numpy(rows)))
        # Where everybody is meant nothing is gathered or scattered.
        here = there = slice(None) if len(rows) == count else rows
        if len(rows) < count and not on_host:
            there = torch.from_numpy(rows).to(device, non_blocking=True)
        answer, stage = own, point.stage_after.get(member)
        if member == STEM:
            for_all += stem_gmacs
        else:
            ran[here, member], last[here] = True, member
            if point.mixes:
                log_probs[member] = _among_all(count, there, log_softmax(own, tail))
            if stage is not None and stage.mixing is not None:
                # Of a member that nobody was sent to nothing is known, and nothing is mixed.
                mixed = [(m, w) for m, w in zip(point.members, stage.mixing, strict=False) if m in log_probs]
                answer = mix([log_probs[m][there] for m, _ in mixed], [weight for _, weight in mixed])
            # A copy: what `run` gave may be somebody else's.
            logits = _among_all(count, there, answer, logits)
        position = point.decision_after.get(member)
        if position is None:
            continue
        head = heads[position]
        # What a stem gives in the place of logits is no answer.
        known = known_of(stage.evidence, None if member == STEM else own, answer, features, tail)
        if member != STEM:
            votes[here, member], known = known[:, 0], known[:, 1:]
        stage_scores = head.scores(stage_evidence(stage.evidence, known, votes[here], head.knots))
        allowed = _allowed(point.members, member, num_experts)
        following[here] = chosen = choose(stage_scores, allowed)
        asked.update(chosen.tolist())
        scores[here, position] = np.where(allowed, stage_scores, np.nan)
        if member == STEM:
            for_all += head.gmacs
        else:
            costs[member] += head.gmacs
    routing = Routing(*map(torch.as_tensor, (logits, last, ran, ran @ costs + for_all, scores)))
    return routing if on_host else routing.to(device)


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
        self._heads: dict[str, list[Head]] = {}
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
        heads = self._heads.get(point.name)
        if heads is None:
            with torch.inference_mode(False):
                heads = [
                    self._stack(stage)[self.rows[point.name, stage.after, stage.evidence]] for stage in point.decisions
                ]
            self._heads[point.name] = heads
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
        return super()._apply(keeping_dtype(fn), recurse)

    def _stack(self, stage: Stage) -> _StackedHeads:
        return self.stages[_stack_name(stage.after, stage.evidence)]


def keeping_dtype(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `nn.Module.to` and the like do to each tensor, but for the cast."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move


def _forget_heads(dispatcher: Dispatcher, *_: Any) -> None:
    """They are copies, which do not follow when the stacks change."""
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
        return Head(
            *(None if values is None else values[row].to("cpu", torch.float32, copy=True) for values in tensors)
        )

    def store(self, row: int, head: Head, name: str) -> None:
        if head.weight.shape != self.weight.shape[1:] or head.bias.shape != self.bias.shape[1:]:
            raise PertinenceError(
                f"operating point {name!r}: a head has shape {tuple(head.weight.shape)}, its stage takes "
                f"{tuple(self.weight.shape[1:])}"
            )
        self.weight[row], self.bias[row] = head.weight, head.bias
        if self.knots is not None:
            self.knots[row] = head.knots
