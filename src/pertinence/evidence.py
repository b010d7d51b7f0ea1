"""Evidence: what is known of an image once some experts have run, as numbers that a head reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn


TOP_SCORES = 5
"""Labels that evidence tells apart; the others count as one."""
CONFIDENCE = TOP_SCORES
"""Position in the evidence "mix" of the largest probability."""
KNOT_QUANTILES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
NUM_KNOTS = len(KNOT_QUANTILES)
LOG_FLOOR = -30.0
LEAST = math.exp(LOG_FLOOR)
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
    on_host = (tensor.cpu().numpy() for tensor in (summary(mixed, tail), votes, ran, knots))
    return torch.from_numpy(evidence_of_summary(*on_host))


SUMMARY_SIZE = TOP_SCORES + 2


def summary(mixed: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """All that evidence needs of an answer over many labels, computed where the answer is.

    Args:
        mixed: (b, C) logits.
        tail: see `route`.

    Returns:
        (b, 7), in the dtype of the logits: the five largest log-probabilities, that of all other labels together, the
        label.
    """
    log_probs = log_softmax(mixed, tail)
    best, labels = log_probs.topk(min(TOP_SCORES, log_probs.shape[-1]))
    if best.shape[1] < TOP_SCORES:
        best = nn.functional.pad(best, (0, TOP_SCORES - best.shape[1]), value=-torch.inf)
    others = _mass_of_the_others(log_probs, labels, tail).log_()
    return torch.cat([best, others, log_probs.argmax(-1, keepdim=True).to(best.dtype)], 1)


def evidence_of_summary(summary: np.ndarray, votes: np.ndarray, ran: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """`mix_evidence` of the `summary` of a mixture: a few numbers of an image, which the host is quickest with."""
    count, num_experts = ran.shape
    evidence = np.zeros((count, mix_evidence_size(num_experts)), summary.dtype)
    outcomes = summary[:, :-1]
    likely, outcomes = np.exp(outcomes), np.maximum(outcomes, LOG_FLOOR)
    rest = np.log(np.maximum(likely[:, 1:].sum(1), LEAST))
    hinges = np.maximum((outcomes[:, 0] - rest)[:, None] - knots, 0)
    at = TOP_SCORES
    evidence[:, :at] = outcomes[:, :-1]
    evidence[:, at : at + 2] = likely[:, :2]
    evidence[:, at + 2] = likely[:, 0] - likely[:, 1]
    evidence[:, at + 3] = -(likely * outcomes).sum(1)
    evidence[:, at + 4] = rest
    at += 5
    evidence[:, at : at + num_experts] = (votes == summary[:, -1:]) & ran
    at += num_experts
    evidence[:, at + 1 : at + 1 + NUM_KNOTS] = hinges
    if np.count_nonzero(ran) > count:
        evidence[:, at], last_agree = _compare(votes, ran)
        evidence[:, at + 1 + NUM_KNOTS :] = hinges * last_agree[:, None]
    else:  # one expert agrees with itself, and there are no last two
        evidence[:, at] = 1
    return evidence


def _compare(votes: np.ndarray, ran: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean agreement of pairs of experts that were run, and whether the last two agree: float64 and bool (b,)."""
    num_experts, run = ran.shape[1], ran.sum(1)
    # Who was not run agrees with itself alone: the N x N table then holds N ones and each agreeing pair twice.
    votes = np.where(ran, votes, -1 - np.arange(num_experts))
    agreeing = (votes[:, :, None] == votes[:, None, :]).sum((1, 2)) - num_experts
    agreement = np.where(run > 1, agreeing / np.maximum(run * (run - 1), 1), 1)
    from_last = np.where(ran, ran[:, ::-1].cumsum(1)[:, ::-1], 0)
    last, before = (np.where(from_last == place, votes, 0).sum(1) for place in (1, 2))
    return agreement, (last == before) & (run > 1)


def _mass_of_the_others(log_probs: torch.Tensor, labels: torch.Tensor, tail: int) -> torch.Tensor:
    """Probability of all labels (b, C) but those given (b, k): (b, 1)."""
    others = log_probs.exp()
    if tail > 1:
        others[:, -1] *= tail
    return others.scatter_(1, labels, 0.0).sum(1, keepdim=True)


def known_of(
    kind: str,
    own: torch.Tensor | None,
    answer: torch.Tensor | None,
    features: torch.Tensor | None,
    tail: int = 1,
) -> torch.Tensor:
    """What a stage has to know, in one tensor, which is copied to the host at once.

    Args:
        kind: of the evidence: "features", "mix" or "both".
        own: (b, C) logits of the expert that has just run; None: the separate stem, which has none.
        answer: (b, C) logits of the mixture.
        features: (b, F) of what has just run; read by "features" and "both" only.
        tail: see `route`.

    Returns:
        (b, K): the label of `own`, the `summary` of the answer, and the features, as far as they are there or read.
    """
    parts = [] if own is None else [own.argmax(-1, keepdim=True)]
    if kind != "features":
        parts.append(summary(answer, tail))
    if kind != "mix":
        parts.append(features)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def stage_evidence(
    kind: str, known: np.ndarray, votes: np.ndarray, ran: np.ndarray, knots: torch.Tensor | None
) -> np.ndarray:
    """What the head of a stage reads: (b, F) for "features", `mix_evidence` for "mix", side by side for "both".

    Args:
        kind: of the evidence.
        known: what `known_of` gives, without the label.
        votes: int64 (b, N), the label that each expert answers with.
        ran: bool (b, N), whether it was run.
        knots: (8,), see `mix_evidence`.
    """
    if kind == "features":
        return known
    mixture = evidence_of_summary(known[:, :SUMMARY_SIZE], votes, ran, knots.numpy())
    return mixture if kind == "mix" else np.concatenate([known[:, SUMMARY_SIZE:], mixture], 1)


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
    return (best - _mass_of_the_others(log_probs, labels, tail).log_().clamp_min_(LOG_FLOOR)).squeeze(1)


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
