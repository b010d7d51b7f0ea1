"""The rungs of cascades: which experts of a pool make the longest chain."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ...evaluation.intervals import paired_difference
from ...predictions.predictions import Predictions


MAX_MEMBERS = 8
"""Largest number of rungs of a chain; in a larger pool the chain skips some."""
DOMINATED_ERRORS = 2.0
"""An expert is left out if a cheaper one is more accurate by this many paired standard errors."""


def rungs_of(predictions: Predictions, among: Sequence[int]) -> tuple[int, ...]:
    """The experts that cascades consist of: those that no cheaper one clearly beats, and the most expensive one.

    Args:
        predictions: predictions for the search images.
        among: pool indices, by rising cost.
    """
    hopeless = dominated(predictions, among)
    return (*(index for index in among[:-1] if index not in hopeless), among[-1])


def spaced(rungs: Sequence[int], costs: Sequence[float], size: int = MAX_MEMBERS) -> tuple[int, ...]:
    """At most `size` of the rungs, so that the cost of each is a multiple of that of the one before; the last is kept.

    Args:
        rungs: pool indices, rising.
        costs: cost of each expert of the pool.
        size: how many are kept.
    """
    chosen, spacing = list(rungs), 1.0
    while len(chosen) > size:
        spacing *= 1.05
        chosen = [rungs[0]]
        for rung in rungs[1:]:
            if costs[rung] >= spacing * costs[chosen[-1]]:
                chosen.append(rung)
        if chosen[-1] != rungs[-1]:
            chosen.append(rungs[-1])
    return tuple(chosen)


def dominated(predictions: Predictions, among: Sequence[int]) -> set[int]:
    """The experts among `among` (by rising cost) that are less accurate than a cheaper one by two paired standard
    errors on the same images."""
    correct = predictions.correct().double()
    both = correct.T @ correct
    right = correct.sum(0)
    beaten = set()
    for cheaper, index in itertools.combinations(among, 2):
        wins, losses = (right[[cheaper, index]] - both[cheaper, index]).tolist()
        difference, error = paired_difference(wins, losses, len(correct))
        if difference > DOMINATED_ERRORS * error:
            beaten.add(index)
    return beaten
