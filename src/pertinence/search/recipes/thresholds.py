"""The baseline recipe: confidence cascades on the largest softmax probability, tuned by the same genetic algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...evaluation.candidates import Candidate
from ...evaluation.outcomes import evaluate_experts, summarise
from ...predictions.predictions import ROWS_AT_ONCE, Predictions
from ...routing.evidence import MIX
from ...routing.front import OperatingPoint, Stage
from ...routing.heads import threshold_head
from ...routing.mixing import log_softmax, mix
from .base import Individual
from .cascade_fit import MAX_WEIGHT


TUNING_ROWS = 50_000


@dataclass(frozen=True)
class ThresholdSpace:
    """Genome of a confidence cascade of fixed length: its experts, thresholds, and a mixing weight for each member.

    A threshold gene g means: defer below a largest probability of 1 - 10^(-4 g).

    Args:
        num_experts: size of the pool, N.
        num_members: length of the cascade, M.
        mixing: whether there are mixing weights.
    """

    num_experts: int
    num_members: int
    mixing: bool = True

    @property
    def lower(self) -> np.ndarray:
        return np.zeros(self.num_members + self.num_members * self.mixing)

    @property
    def upper(self) -> np.ndarray:
        chains = np.nextafter(float(math.comb(self.num_experts, self.num_members)), 0.0)
        weights = np.full(self.num_members * self.mixing, MAX_WEIGHT)
        return np.concatenate([[chains], np.ones(self.num_members - 1), weights])

    @property
    def seeds(self) -> np.ndarray:
        return np.empty((0, len(self.lower)))

    def decode(self, genome: np.ndarray) -> tuple[tuple[int, ...], list[float], list[float] | None]:
        """Members, thresholds (M - 1) and mixing weights (M)."""
        values = genome.tolist()
        thresholds = [1 - 10 ** (-4 * gene) for gene in values[1 : self.num_members]]
        return (
            combination(int(values[0]), self.num_experts, self.num_members),
            thresholds,
            values[self.num_members :] if self.mixing else None,
        )


def combination(rank: int, count: int, size: int) -> tuple[int, ...]:
    """The combination of `size` of `count` numbers that has a given rank in lexicographic order."""
    chosen: list[int] = []
    number = 0
    while len(chosen) < size:
        with_number = math.comb(count - number - 1, size - len(chosen) - 1)
        if rank < with_number:
            chosen.append(number)
        else:
            rank -= with_number
        number += 1
    return tuple(chosen)


class ThresholdRecipe:
    """The baseline: defer while the largest softmax probability of the mixture is below a threshold.

    Members, thresholds and mixing weights are tuned and evaluated on the same images, as is usual for cascades: the
    figures on the search images are optimistic, those on the report images are not.

    Args:
        predictions: predictions for the search images; if there are very many, evenly spaced ones are used, which
            suffice for a handful of numbers.
        num_members: length of the cascades.
        mixing: whether answers mix the outputs of the experts that have run; otherwise the last one answers alone.
    """

    def __init__(self, predictions: Predictions, num_members: int, mixing: bool = True):
        self.name = f"max-softmax-{num_members}"
        if len(predictions) > TUNING_ROWS:
            spaced = torch.linspace(0, len(predictions) - 1, TUNING_ROWS, dtype=torch.float64)
            predictions = predictions.subset(spaced.long())
        self.predictions, self.measure = predictions, predictions.measure
        self.space = ThresholdSpace(predictions.num_experts, num_members, mixing)
        count = torch.arange(len(predictions))
        self._log_probs = [
            torch.cat(
                [log_softmax(predictions.logits(e, rows), predictions.tail) for rows in count.split(ROWS_AT_ONCE)]
            )
            for e in range(predictions.num_experts)
        ]
        self._targets = predictions.target_columns
        self._largest = evaluate_experts(predictions)[-1]

    def evaluate(self, genomes: np.ndarray) -> Iterator[Individual]:
        return (self._judge(*self.space.decode(genome)) for genome in genomes)

    def _judge(self, members: tuple[int, ...], thresholds: list[float], weights: list[float] | None) -> Individual:
        predictions = self.predictions
        mixing = [None if weights is None else tuple(weights[: i + 1]) for i in range(len(members))]
        stages = tuple(Stage(member, MIX.name, own, MIX.version) for member, own in zip(members, mixing, strict=True))
        point = OperatingPoint("", "thresholds", members, stages)
        heads = tuple(
            threshold_head(point, stage, threshold, predictions.num_experts)
            for stage, threshold in zip(point.decisions, thresholds, strict=True)
        )
        here = torch.ones(len(predictions), dtype=torch.bool)
        right, ended = torch.zeros_like(here), torch.zeros(len(here), dtype=torch.int64)
        costs = predictions.costs
        spent = {unit: torch.zeros(len(here), dtype=torch.float64) for unit in costs.values}
        steps = {unit: costs.chain(unit, members).tolist() for unit in spent}
        for position, member in enumerate(members):
            rows = here.nonzero().squeeze(1)
            scores = self._log_probs[member][rows]
            if weights is not None:
                known = [self._log_probs[m][rows] for m in members[: position + 1]]
                scores = log_softmax(mix(known, weights[: position + 1]), predictions.tail)
            best, answer = scores.max(1)
            right[rows], ended[rows] = answer == self._targets[rows], member
            for unit, so_far in spent.items():
                so_far[rows] += steps[unit][position]
                if position < len(thresholds):
                    so_far[rows] += costs.of_head(unit, heads[position].size)
            if position < len(thresholds):
                here[rows[best.exp() >= thresholds[position]]] = False
        shares = torch.bincount(ended, minlength=predictions.num_experts) / len(here)
        outcome = summarise(predictions, right, spent, shares, predictions.candidates is not None)
        candidate = Candidate(replace(point, select=outcome.figures), heads, outcome.versus(self._largest))
        return Individual.of(candidate)
