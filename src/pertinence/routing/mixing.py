"""Log-probabilities, log-linear pooling of experts, and summaries of the result.

Values stay where they are computed: NumPy arrays on the host, which are fastest for a few images, and tensors on an
accelerator. Functions of `Array` accept both, and use only names that both libraries share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np


if TYPE_CHECKING:  # nothing below needs torch, unless it is given tensors
    import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"
ArrayT = TypeVar("ArrayT", bound="np.ndarray | torch.Tensor")

TOP_SCORES = 5
"""Number of labels that a summary distinguishes; the others count as one."""
LOG_FLOOR = -30.0
LEAST = math.exp(LOG_FLOOR)


def library(values: Array) -> ModuleType:
    """The library of an array: numpy or torch."""
    if isinstance(values, np.ndarray):
        return np
    import torch

    return torch


def log_softmax(logits: ArrayT, tail: int = 1) -> ArrayT:
    """Log-probabilities (..., C) of logits whose last column stands for `tail` labels of equal probability."""
    xp = library(logits)
    shifted: Any = logits - xp.amax(logits, -1, keepdims=True)
    relative = xp.exp(shifted)
    if tail > 1:
        relative[..., -1] *= tail
    shifted -= xp.log(relative.sum(-1, keepdims=True))
    return shifted


def mix(log_probs: Sequence[ArrayT], weights: Sequence[float]) -> ArrayT:
    """Log-linear pooling: the sum of weight x log-softmax over the experts that have run, (b, C).

    Args:
        log_probs: M arrays (b, C), zero for images that an expert has not run on.
        weights: M numbers.
    """
    mixed: Any = log_probs[0] * weights[0]
    for values, weight in zip(log_probs[1:], weights[1:], strict=True):
        mixed += weight * values
    return mixed


def beside(values: np.ndarray, other: Array) -> Array:
    """A NumPy array where another array is: on the host as it is, or as a tensor on its device."""
    if isinstance(other, np.ndarray):
        return values
    placed: Array = library(other).from_numpy(values).to(other.device, non_blocking=True)
    return placed


def summary(mixed: ArrayT, tail: int = 1) -> ArrayT:
    """Summarise logits over many labels, on their own device.

    Args:
        mixed: (b, C), logits.
        tail: see `policy.route`.

    Returns:
        (b, 7), in the dtype of the logits: the five largest log-probabilities, the total probability of all other
        labels, and the predicted label.
    """
    xp = library(mixed)
    best: Any  # an array of either library: they share names, not types
    kept: Any = mixed if tail == 1 else mixed[:, :-1]
    if xp is not np:
        best, labels = kept.topk(min(TOP_SCORES, kept.shape[1]))
        others = (kept - best[:, :1]).exp_().scatter_(1, labels, 0.0).sum(1, keepdim=True)
    else:
        rising = np.sort(kept)
        best = rising[:, : -TOP_SCORES - 1 : -1]
        others = np.exp(rising[:, :-TOP_SCORES] - best[:, :1]).sum(1, keepdims=True)
    if tail > 1:
        others = others + tail * xp.exp(mixed[:, -1:] - best[:, :1])
    best = best - best[:, :1]
    total = xp.exp(best).sum(1, keepdims=True) + others
    parts = [best - xp.log(total), others / total, top_label(mixed)]
    if best.shape[1] < TOP_SCORES:  # there are fewer labels
        parts[1:1] = [xp.full_like(best[:, :1], -np.inf)] * (TOP_SCORES - best.shape[1])
    return xp.concatenate(parts, 1)


def top_label(scores: ArrayT) -> ArrayT:
    """The label with the largest score (b, C), as a number of the same dtype: (b, 1)."""
    return library(scores).asarray(scores.argmax(1), dtype=scores.dtype)[:, None]


def log_odds(logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """logit(p1), the confidence of logits (b, C) in their top label: (b,)."""
    log_probs = log_softmax(logits, tail)
    best, labels = log_probs.max(-1, keepdim=True)
    others = log_probs.exp()
    if tail > 1:
        others[:, -1] *= tail
    rest = others.scatter_(1, labels, 0.0).sum(1, keepdim=True)
    return (best - rest.log_().clamp_min_(LOG_FLOOR)).squeeze(1)
