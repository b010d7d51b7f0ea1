"""Which experts a cascade may run one after the other: a small family of chains, each with a reason.

A free choice of members fools itself: of many chains judged on the same images the luckiest wins, and drops on others.
So a chain is described by very few bits: where it starts, and in a large pool how far its rungs lie apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...evaluation.intervals import paired_difference
from ...predictions.predictions import Predictions


MAX_MEMBERS = 8
"""Rungs of a chain; of a larger pool a chain takes some."""
DOMINATED_ERRORS = 2.0
"""An expert is left out where a cheaper one is more accurate by so many paired standard errors."""


@dataclass(frozen=True)
class ChainFamily:
    """The chains over a pool.

    Args:
        costs: of one image, for each expert of the pool, rising.
        rungs: pool indices of the experts that chains are made of, rising; every chain ends with the last.
        smaller: for some rungs the pool index of the same expert on a smaller image.
    """

    costs: Sequence[float]
    rungs: tuple[int, ...]
    smaller: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, predictions: Predictions, smaller: Mapping[int, int] | None = None) -> ChainFamily:
        """The family for the images of a search; `smaller` as above."""
        smaller = dict(smaller or {})
        whole = [index for index in range(predictions.num_experts) if index not in smaller.values()]
        hopeless = dominated(predictions, whole)
        rungs = [index for index in whole[:-1] if index not in hopeless]
        return cls(predictions.costs.of_experts, (*rungs, whole[-1]), smaller)

    @property
    def starts(self) -> int:
        """Number of rungs that a chain may start with."""
        return max(len(self.rungs) - 1, 1)

    @property
    def spacings(self) -> tuple[float, ...]:
        """How many times the cost of the rung before each rung costs at least."""
        return (1.0,) if len(self.rungs) <= MAX_MEMBERS else (1.25, 1.5, 2.0, 3.0)

    def chain(self, start: int, spacing: float = 1.0) -> tuple[int, ...]:
        """Pool indices of the members, rising; the first, for which every image pays, on a smaller image if it can.

        Args:
            start: position among the rungs of the first.
            spacing: see `spacings`; widened until the chain has at most eight members.
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
    """Of some experts, by rising cost, those that a cheaper one clearly beats: by two paired standard errors, on the
    same images."""
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
