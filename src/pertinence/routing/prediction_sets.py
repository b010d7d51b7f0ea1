"""Prediction sets: the labels that an answer cannot exclude, as conformal prediction with regularised adaptive sets.

The score of a label is the probability of all labels above it and half its own, with a penalty on every rank beyond
the fifth (RAPS: Angelopoulos, Bates, Malik and Jordan 2021, arXiv 2009.14193; without the penalty APS: Romano, Sesia
and Candès 2020, arXiv 2006.02544). Half of its own probability stands for the random share of it there: any score that
is a function of image and label is valid, and users get the same set twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .mixing import ArrayT, library, log_softmax


FREE_RANKS, PENALTY = 5, 0.01


def label_scores(logits: ArrayT, tail: int = 1) -> ArrayT:
    """The conformity score of every label: float (b, C), rising from the most probable label on.

    Args:
        logits: (b, C).
        tail: see `policy.route`; a label that the last column stands for scores infinitely.
    """
    xp: Any = library(logits)
    probs = xp.exp(log_softmax(logits, tail))
    if tail > 1:
        probs = probs[:, :-1]
    order = xp.argsort(-probs, 1)
    falling = xp.take_along_axis(probs, order, 1) if xp is np else probs.gather(1, order)
    ranks = np.maximum(np.arange(falling.shape[1]) + 1 - FREE_RANKS, 0).astype(np.float32) * PENALTY
    penalties = ranks if xp is np else xp.from_numpy(ranks).to(logits.device)
    scores = xp.cumsum(falling, 1) - falling / 2 + penalties
    scattered: Any = xp.empty_like(scores)
    if xp is np:
        np.put_along_axis(scattered, order, scores, 1)
    else:
        scattered.scatter_(1, order, scores)
    if tail > 1:
        scattered = xp.concatenate([scattered, xp.full_like(scattered[:, :1], np.inf)], 1)
    found: ArrayT = scattered
    return found


def prediction_sets(logits: ArrayT, threshold: float) -> ArrayT:
    """The labels whose score is at most a threshold, and always the most probable one: bool (b, C)."""
    xp: Any = library(logits)
    sets: Any = label_scores(logits) <= threshold
    sets[xp.arange(len(logits)), logits.argmax(1)] = True
    found: ArrayT = sets
    return found
