"""Histograms of the confidence of answers, which the routing monitor compares."""

from __future__ import annotations

import torch

from .mixing import log_odds


CONFIDENCE_EDGES = tuple(edge / 2 for edge in range(-4, 27))
"""Edges of the bins: half steps of logit(p1) from -2 (p1 = 0.12) to 13 (1 - p1 = 2e-6). On this scale 0.99 and 0.9999
are about as far apart as 0.5 and 0.99."""
CONFIDENCE_BINS = len(CONFIDENCE_EDGES) + 1


def confidence_bins(logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """The bin of each answer, from logits (b, C): int64 (b,), rising with confidence; see `CONFIDENCE_EDGES`."""
    edges = torch.tensor(CONFIDENCE_EDGES, dtype=logits.dtype, device=logits.device)
    return torch.bucketize(log_odds(logits, tail), edges, right=True)


def count_answers(logits: torch.Tensor, expert_indices: torch.Tensor, num_experts: int, tail: int = 1) -> torch.Tensor:
    """Count answers by the expert that ran last and by confidence.

    Args:
        logits: (b, C), of the answers.
        expert_indices: int64 (b,), the expert that ran last.
        num_experts: size of the pool, N.
        tail: see `policy.route`.

    Returns:
        int64 (N, 32).
    """
    cells = expert_indices * CONFIDENCE_BINS + confidence_bins(logits, tail)
    return torch.bincount(cells, minlength=num_experts * CONFIDENCE_BINS).view(num_experts, CONFIDENCE_BINS)
