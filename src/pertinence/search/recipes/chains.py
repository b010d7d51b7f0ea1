"""The cascades that may be searched: a small family of chains of experts.

A free choice of members suffers from the winner's curse: among many chains evaluated on the same images the luckiest
one wins, and is worse on others. So a chain is described by very few bits: its first rung, and in a large pool the
spacing of its rungs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...evaluation.intervals import paired_difference
from ...predictions.predictions import Predictions


MAX_MEMBERS = 8
"""Largest number of rungs of a chain; in a larger pool a chain skips some."""
DOMINATED_ERRORS = 2.0
"""An expert is left out if a cheaper one is more accurate by this many paired standard errors."""


@dataclass(frozen=True)
class ChainFamily:
    """The chains over a pool.

    Args:
        costs: cost of one image for each expert of the pool, rising.
        rungs: pool indices of the experts that chains consist of, rising; every chain ends with the last.
        smaller: for some rungs the pool index of their variant with a smaller input.
    """

    costs: Sequence[float]
    rungs: tuple[int, ...]
    smaller: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, predictions: Predictions, smaller: Mapping[int, int] | None = None) -> ChainFamily:
        """The family for the images of a search; for `smaller` see the class."""
        smaller = dict(smaller or {})
        whole = [index for index in range(predictions.num_experts) if index not in smaller.values()]
        hopeless = dominated(predictions, whole)
        rungs = [index for index in whole[:-1] if index not in hopeless]
        return cls(predictions.costs.of_experts, (*rungs, whole[-1]), smaller)

    @property
    def starts(self) -> int:
        """Number of possible first rungs of a chain."""
        return max(len(self.rungs) - 1, 1)

    @property
    def spacings(self) -> tuple[float, ...]:
        """The possible spacings: least ratio of the cost of each rung to that of the rung before."""
        return (1.0,) if len(self.rungs) <= MAX_MEMBERS else (1.25, 1.5, 2.0, 3.0)

    def chain(self, start: int, spacing: float = 1.0) -> tuple[int, ...]:
        """Pool indices of the members, rising; the first, which runs on every image, is the smaller variant if any.

        Args:
            start: position of the first rung among the rungs.
            spacing: see `spacings`; increased until the chain has at most eight members.
        """
        rungs = self.rungs[start:]
        chosen = _spaced(rungs, self.costs, spacing)
        while len(chosen) > MAX_MEMBERS:
            spacing *= 1.05
            chosen = _spaced(rungs, self.costs, spacing)
        return (self.smaller.get(chosen[0], chosen[0]), *chosen[1:])


def _spaced(rungs: Sequence[int], costs: Sequence[float], spacing: float) -> list[int]:
    chosen = [rungs[0]]
    for rung in rungs[1:]:
        if costs[rung] >= spacing * costs[chosen[-1]]:
            chosen.append(rung)
    return chosen if chosen[-1] == rungs[-1] else [*chosen, rungs[-1]]


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
