"""Evidence: what is known of an image once some experts have run, as numbers that a head reads.

Answers stay where they are computed: on the host they are arrays of numpy, which is quickest with a few images, on an
accelerator tensors. What is said of `Array` holds for both, and is written with what both libraries call alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch


Array = np.ndarray | torch.Tensor

TOP_SCORES = 5
"""Labels that evidence tells apart; the others count as one."""
CONFIDENCE = TOP_SCORES
"""Position in the evidence "mix" of the largest probability."""
KNOT_QUANTILES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
NUM_KNOTS = len(KNOT_QUANTILES)
LOG_FLOOR = -30.0
LEAST = math.exp(LOG_FLOOR)
LEAST_OUTCOMES = np.array([LOG_FLOOR] * TOP_SCORES + [LEAST], np.float32)
CONFIDENCE_EDGES = tuple(edge / 2 for edge in range(-4, 27))
"""Where bins of confidence meet: half steps of logit(p1) from -2 (p1 = 0.12) to 13 (1 - p1 = 2e-6), so that answers of
0.99 and of 0.9999 are told apart as those of 0.5 and of 0.99 are."""
CONFIDENCE_BINS = len(CONFIDENCE_EDGES) + 1


def library(values: Array) -> ModuleType:
    """numpy or torch."""
    return torch if isinstance(values, torch.Tensor) else np


def mix(log_probs: Sequence[Array], weights: Sequence[float]) -> Array:
    """Log-linear mixture: sum over experts of weight x log-softmax, of those that were run: (b, C).

    Args:
        log_probs: M of (b, C), zero where an expert was not run.
        weights: M numbers.
    """
    mixed = log_probs[0] * weights[0]
    for values, weight in zip(log_probs[1:], weights[1:], strict=True):
        mixed += weight * values
    return mixed


def mix_evidence_size(num_experts: int) -> int:
    return TOP_SCORES + 5 + num_experts + 1 + 2 * NUM_KNOTS


def log_softmax(logits: Array, tail: int = 1) -> Array:
    """Log-probabilities (..., C) of logits whose last column stands for `tail` labels that are all alike."""
    xp = library(logits)
    shifted = logits - xp.amax(logits, -1, keepdims=True)
    relative = xp.exp(shifted)
    if tail > 1:
        relative[..., -1] *= tail
    shifted -= xp.log(relative.sum(-1, keepdims=True))
    return shifted


def mix_evidence(
    mixed: torch.Tensor,
    votes: torch.Tensor,
    ran: torch.Tensor,
    knots: torch.Tensor,
    tail: int = 1,
) -> torch.Tensor:
    """Statistics of a mixed answer.

    Args:
        mixed: (b, C) logits of the mixture.
        votes: int64 (b, N), the label that each expert answers with.
        ran: bool (b, N), whether it was run.
        knots: (8,) where the hinges of logit(p1) stand.
        tail: how many labels the last column stands for, see `route`.

    Returns:
        (b, 5 + 5 + N + 1 + 16), on the CPU: five largest log-probabilities; p1, p2, p1 - p2, entropy (all labels but
        the five count as one), log(1 - p1); whether each expert that was run agrees with the mixture; mean agreement
        of pairs; eight hinges of logit(p1), and the same times whether the last two experts agree.
    """
    mixed, votes, ran, knots = (tensor.cpu().numpy() for tensor in (mixed, votes, ran, knots))
    votes = np.where(ran, votes, no_votes(len(votes), votes.shape[1]))
    return torch.from_numpy(evidence_of_summary(summary(mixed, tail), votes, knots))


SUMMARY_SIZE = TOP_SCORES + 2


def summary(mixed: Array, tail: int = 1) -> Array:
    """All that evidence needs of an answer over many labels, computed where the answer is.

    Args:
        mixed: (b, C) logits.
        tail: see `route`.

    Returns:
        (b, 7), in the dtype of the logits: the five largest log-probabilities, the probability of all other labels
        together, the label.
    """
    kept = mixed if tail == 1 else mixed[:, :-1]
    if isinstance(mixed, torch.Tensor):
        best, labels = kept.topk(min(TOP_SCORES, kept.shape[1]))
        others, xp = (kept - best[:, :1]).exp_().scatter_(1, labels, 0.0).sum(1, keepdim=True), torch
    else:
        rising, xp = np.sort(kept), np
        best = rising[:, : -TOP_SCORES - 1 : -1]
        others = np.exp(rising[:, :-TOP_SCORES] - best[:, :1]).sum(1, keepdims=True)
    if tail > 1:
        others = others + tail * xp.exp(mixed[:, -1:] - best[:, :1])
    best = best - best[:, :1]
    total = xp.exp(best).sum(1, keepdims=True) + others
    parts = [best - xp.log(total), others / total, _label(mixed)]
    parts[1:1] = [xp.full_like(best[:, :1], -np.inf)] * (TOP_SCORES - best.shape[1])  # where there are fewer labels
    return xp.concatenate(parts, 1)


def _label(scores: Array) -> Array:
    """That of answers (b, C), as a number of their dtype: (b, 1)."""
    return library(scores).asarray(scores.argmax(1), dtype=scores.dtype)[:, None]


def no_votes(count: int, num_experts: int) -> np.ndarray:
    """Votes of experts that were not run: int64 (count, N), no label, and no two of an image alike."""
    return np.zeros((count, 1), np.int64) - np.arange(1, num_experts + 1)


def evidence_of_summary(summary: np.ndarray, votes: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """`mix_evidence` of the `summary` of a mixture: a few numbers of an image, which the host is quickest with.

    Args:
        summary: (b, 7).
        votes: int64 (b, N), the label that each expert answers with, `no_votes` of those that were not run.
        knots: (8,).
    """
    count, num_experts = votes.shape
    evidence = np.zeros((count, mix_evidence_size(num_experts)), summary.dtype)
    likely = summary[:, :-1].copy()
    np.exp(likely[:, :TOP_SCORES], out=likely[:, :TOP_SCORES])
    outcomes = np.maximum(summary[:, :-1], LEAST_OUTCOMES)
    np.log(outcomes[:, TOP_SCORES], out=outcomes[:, TOP_SCORES])
    rest = np.log(np.maximum(likely[:, 1:].sum(1), LEAST))
    hinges = np.maximum((outcomes[:, 0] - rest)[:, None] - knots, 0)
    at = TOP_SCORES
    evidence[:, :at] = outcomes[:, :at]
    evidence[:, at : at + 2] = likely[:, :2]
    evidence[:, at + 2] = likely[:, 0] - likely[:, 1]
    evidence[:, at + 3] -= (likely * outcomes).sum(1)
    evidence[:, at + 4] = rest
    at += 5
    evidence[:, at : at + num_experts] = votes == summary[:, -1:]
    at += num_experts
    evidence[:, at + 1 : at + 1 + NUM_KNOTS] = hinges
    evidence[:, at], last_agree = _compare(votes)
    evidence[:, at + 1 + NUM_KNOTS :] = hinges * last_agree[:, None]
    return evidence


def _compare(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean agreement of pairs of experts that were run, 1 without a pair, and whether the last two agree: float64 and
    bool (b,)."""
    count, num_experts = votes.shape
    ran = votes >= 0
    run = ran.sum(1)
    if not (run > 1).any():
        return np.ones(count), np.zeros(count, dtype=bool)
    # The N x N table holds N ones, and each agreeing pair twice.
    agreeing = (votes[:, :, None] == votes[:, None, :]).sum((1, 2)) - num_experts
    agreement = np.where(run > 1, agreeing / np.maximum(run * (run - 1), 1), 1)
    from_last = np.where(ran, ran[:, ::-1].cumsum(1)[:, ::-1], 0)
    last, before = (np.where(from_last == place, votes, 0).sum(1) for place in (1, 2))
    return agreement, (last == before) & (run > 1)


def known_of(
    kind: str,
    own: Array | None,
    answer: Array | None,
    features: Array | None,
    tail: int = 1,
) -> np.ndarray:
    """What a stage has to know, in one array, which is copied to the host at once.

    Args:
        kind: of the evidence: "features", "mix" or "both".
        own: (b, C) logits of the expert that has just run; None: the separate stem, which has none.
        answer: (b, C) logits of the mixture.
        features: (b, F) of what has just run; read by "features" and "both" only.
        tail: see `route`.

    Returns:
        (b, K): the label of `own`, the `summary` of the answer, and the features, as far as they are there or read.
    """
    parts = []
    if own is not None:
        parts.append(_label(own))
    if kind != "features":
        parts.append(summary(answer, tail))
    if kind != "mix":
        parts.append(features)
    known = parts[0] if len(parts) == 1 else library(parts[0]).concatenate(parts, 1)
    return known.cpu().numpy() if isinstance(known, torch.Tensor) else known


def stage_evidence(kind: str, known: np.ndarray, votes: np.ndarray, knots: torch.Tensor | None) -> np.ndarray:
    """What the head of a stage reads: (b, F) for "features", `mix_evidence` for "mix", side by side for "both".

    Args:
        kind: of the evidence.
        known: what `known_of` gives, without the label.
        votes: int64 (b, N), see `evidence_of_summary`.
        knots: (8,), see `mix_evidence`.
    """
    if kind == "features":
        return known
    mixture = evidence_of_summary(known[:, :SUMMARY_SIZE], votes, knots.numpy())
    return mixture if kind == "mix" else np.concatenate([known[:, SUMMARY_SIZE:], mixture], 1)


def evidence_size(kind: str, num_experts: int, num_features: int) -> int:
    """Width of `stage_evidence`."""
    return (num_features if kind != "mix" else 0) + (mix_evidence_size(num_experts) if kind != "features" else 0)


def fit_knots(logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """Where the hinges of the evidence "mix" stand: low quantiles of logit(p1) over answers (n, C); (8,)."""
    return torch.quantile(
        log_odds(logits, tail), torch.tensor(KNOT_QUANTILES, dtype=logits.dtype, device=logits.device)
    )


def log_odds(logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """logit(p1), how sure answers (b, C) are of their label: (b,)."""
    log_probs = log_softmax(logits, tail)
    best, labels = log_probs.max(-1, keepdim=True)
    others = log_probs.exp()
    if tail > 1:
        others[:, -1] *= tail
    rest = others.scatter_(1, labels, 0.0).sum(1, keepdim=True)
    return (best - rest.log_().clamp_min_(LOG_FLOOR)).squeeze(1)


def confidence_bins(logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """Bin of the confidence of answers (b, C), rising, see `CONFIDENCE_EDGES`: int64 (b,)."""
    edges = torch.tensor(CONFIDENCE_EDGES, dtype=logits.dtype, device=logits.device)
    return torch.bucketize(log_odds(logits, tail), edges, right=True)


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
