"""The policy: evidence of what was run, one linear head per stage, answer or which expert next.

The model calls `route` on what its experts just said, and every figure that is reported comes from `route` on cached
predictions. A single image (`one_image`) and the objectives of a search (`recipes`, `cascade`, `thresholds`) go ways
of their own, which tests hold to the same policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .evidence import (
    Array,
    known_of,
    log_softmax,
    mix,
    no_votes,
    stage_evidence,
)
from .front import STEM, OperatingPoint, Stage
from .heads import Head


Answer = tuple[torch.Tensor | None, torch.Tensor | None]
"""Logits (b, C) and pooled features (b, F) of one expert; features may be None where no head reads them, logits are
None for the stem."""


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
