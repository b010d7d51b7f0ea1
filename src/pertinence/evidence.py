"""Evidence: what is known of an image once some experts have run, as numbers that a head reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


TOP_SCORES = 5
"""Labels that evidence tells apart; the others count as one."""
CONFIDENCE = TOP_SCORES
"""Position in the evidence "mix" of the largest probability."""
KNOT_QUANTILES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
NUM_KNOTS = len(KNOT_QUANTILES)
LOG_FLOOR = -30.0
CONFIDENCE_EDGES = tuple(edge / 2 for edge in range(-4, 27))
"""Where bins of confidence meet: half steps of logit(p1) from -2 (p1 = 0.12) to 13 (1 - p1 = 2e-6), so that answers of
0.99 and of 0.9999 are told apart as those of 0.5 and of 0.99 are."""
CONFIDENCE_BINS = len(CONFIDENCE_EDGES) + 1


def mix(log_probs: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Log-linear mixture: sum over experts of weight x log-softmax, of those that were run: (b, C).

    Args:
        log_probs: M of (b, C), zero where an expert was not run.
        weights: M numbers.
    """
    mixed = log_probs[0] * weights[0]
    for values, weight in zip(log_probs[1:], weights[1:], strict=True):
        mixed.add_(values, alpha=weight)
    return mixed


def mix_evidence_size(num_experts: int) -> int:
    return TOP_SCORES + 5 + num_experts + 1 + 2 * NUM_KNOTS


def log_softmax(logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """Log-probabilities (..., C) of logits whose last column stands for `tail` labels that are all alike."""
    if tail == 1:
        return logits.log_softmax(-1)
    widened = torch.cat([logits[..., :-1], logits[..., -1:] + math.log(tail)], -1)
    return logits - widened.logsumexp(-1, keepdim=True)


def mix_evidence(
    mixed: torch.Tensor,
    votes: torch.Tensor,
    ran: torch.Tensor,
    knots: torch.Tensor,
    tail: int = 1,
    is_first: bool = False,
) -> torch.Tensor:
    """Statistics of a mixed answer.

    Args:
        mixed: (b, C) logits of the mixture.
        votes: int64 (b, N), the label that each expert answers with.
        ran: bool (b, N), whether it was run.
        knots: (8,) where the hinges of logit(p1) stand.
        tail: how many labels the last column stands for, see `route`.
        is_first: says that of no image more than one expert was run: then there is nothing to compare.

    Returns:
        (b, 5 + 5 + N + 1 + 16): five largest log-probabilities; p1, p2, p1 - p2, entropy (all labels but the five
        count as one), log(1 - p1); whether each expert that was run agrees with the mixture; mean agreement of pairs;
        eight hinges of logit(p1), and the same times whether the last two experts agree.
    """
    log_probs = log_softmax(mixed, tail)
    answer = log_probs.argmax(-1, keepdim=True)
    best, labels = log_probs.topk(min(TOP_SCORES, log_probs.shape[-1]))
    rest = _log_of_the_others(log_probs, answer, tail)
    others = _log_of_the_others(log_probs, labels, tail)
    outcomes = torch.cat([best, others.unsqueeze(1)], 1).clamp_min(LOG_FLOOR)
    likely = outcomes.exp()
    entropy = -(likely * outcomes).sum(-1)
    p1, p2 = likely[:, 0], likely[:, 1]
    summary = torch.stack([p1, p2, p1 - p2, entropy, rest], 1)
    top = outcomes[:, :-1]
    if top.shape[1] < TOP_SCORES:
        top = nn.functional.pad(top, (0, TOP_SCORES - top.shape[1]), value=LOG_FLOOR)
    agrees = ((votes == answer) & ran).to(mixed.dtype)
    hinges = ((top[:, 0] - rest).unsqueeze(1) - knots).clamp_min(0)
    if is_first:
        agreement, agreeing = hinges.new_ones(len(hinges), 1), torch.zeros_like(hinges)
    else:
        agreement, last_agree = _compare(votes, ran)
        agreeing = hinges * last_agree
    return torch.cat([top, summary, agrees, agreement, hinges, agreeing], 1)


def _compare(votes: torch.Tensor, ran: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean agreement of pairs of experts that were run, and whether the last two agree: float32 and bool (b, 1)."""
    pairs = ran.unsqueeze(2) & ran.unsqueeze(1)
    same = (votes.unsqueeze(2) == votes.unsqueeze(1)) & pairs
    run = ran.sum(-1)
    # Of n experts the n x n table holds each pair twice and n trivial agreements; one expert agrees with itself.
    agreement = torch.where(run > 1, (same.sum((1, 2)) - run) / (run * (run - 1)).clamp_min(1), 1.0)
    positions = torch.arange(ran.shape[1], device=ran.device)
    last_two = torch.where(ran, positions, -1).topk(min(2, ran.shape[1])).indices
    last_agree = (votes.gather(1, last_two[:, :1]) == votes.gather(1, last_two[:, -1:])) & (run > 1).unsqueeze(1)
    return agreement.unsqueeze(1), last_agree


def _log_of_the_others(log_probs: torch.Tensor, labels: torch.Tensor, tail: int) -> torch.Tensor:
    """Log of the probability of all labels (b, C) but those given (b, k): (b,), not below the floor."""
    others = log_probs.scatter(1, labels, -torch.inf)
    if tail > 1:
        others[:, -1] += math.log(tail)
    return others.logsumexp(-1).clamp_min(LOG_FLOOR)


def stage_evidence(
    kind: str,
    answer: torch.Tensor,
    votes: torch.Tensor | None,
    ran: torch.Tensor,
    features: torch.Tensor | None,
    knots: torch.Tensor | None,
    tail: int = 1,
    is_first: bool = False,
) -> torch.Tensor:
    """What the head of a stage reads: (b, F) for "features", `mix_evidence` for "mix", side by side for "both"."""
    parts = []
    if kind in ("features", "both"):
        parts.append(features)
    if kind in ("mix", "both"):
        parts.append(mix_evidence(answer, votes, ran, knots, tail, is_first))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def evidence_size(kind: str, num_experts: int, num_features: int) -> int:
    """Width of `stage_evidence`."""
    return (num_features if kind != "mix" else 0) + (mix_evidence_size(num_experts) if kind != "features" else 0)


def fit_knots(logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """Where the hinges of the evidence "mix" stand: low quantiles of logit(p1) over answers (n, C); (8,)."""
    return torch.quantile(log_odds(logits, tail), torch.tensor(KNOT_QUANTILES, device=logits.device))


def log_odds(logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """logit(p1), how sure answers (b, C) are of their label: (b,)."""
    log_probs = log_softmax(logits, tail)
    best, labels = log_probs.max(-1, keepdim=True)
    return best.squeeze(1) - _log_of_the_others(log_probs, labels, tail)


def confidence_bins(logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """Bin of the confidence of answers (b, C), rising, see `CONFIDENCE_EDGES`: int64 (b,)."""
    return torch.bucketize(log_odds(logits, tail), torch.tensor(CONFIDENCE_EDGES, device=logits.device), right=True)


def count_answers(logits: torch.Tensor, expert_indices: torch.Tensor, num_experts: int, tail: int = 1) -> torch.Tensor:
    """How many answers each expert gave last, by confidence.

    Args:
        logits: (b, C) answers.
        expert_indices: int64 (b,), the expert that ran last.
        num_experts: size of the pool, N.
        tail: see `route`.

    Returns:
        int64 (N, 32).
    """
    cells = expert_indices * CONFIDENCE_BINS + confidence_bins(logits, tail)
    return torch.bincount(cells, minlength=num_experts * CONFIDENCE_BINS).view(num_experts, CONFIDENCE_BINS)
