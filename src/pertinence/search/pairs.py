"""What pairs of experts are worth before any search: untuned confidence routing with the mixed answer.

The first expert of a pair runs on every image; the second one also runs on the images on which the first is least
confident, as many as the budget allows, and then the mixture answers. Nothing is tuned but two mixing weights, so what
is measured on the images holds for others. It tells the gain of fitted heads nearly without error.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..data.splits import sample_rows
from ..evaluation.intervals import Z, random_mix_hull
from ..predictions.predictions import Predictions
from ..routing.evidence import TOP_PROBABILITY
from .nested import SAVINGS
from .recipes.outputs import PoolOutputs, fit_mixing_weights


WEIGHT_ROWS = 5_000
"""Largest number of images to fit two mixing weights to."""


@dataclass(frozen=True)
class RoutingCurve:
    """The untuned routing of a pair, or a single expert, at each saving.

    Attributes:
        members: pool indices, rising.
        right: bool (n, S), whether each image is right.
        affordable: bool (S,), whether the first expert alone keeps the saving.
    """

    members: tuple[int, ...]
    right: np.ndarray
    affordable: np.ndarray


@dataclass(frozen=True)
class PairValue:
    """What a pair is worth.

    Attributes:
        members: pool indices, rising.
        gain, error: mean accuracy gained over random routing among single experts, over the savings at which the pair
            has a choice, and its paired standard error.
        saving: largest saving without loss: the difference to the reference is at least half a paired standard error;
            0 if there is none.
        saving_interval: the largest savings at which a 95 % interval of the difference lies above 0, and reaches it.
        at: for savings of 20, 40 and 60 % the difference of accuracy to the reference and its paired standard error;
            None if the first expert alone costs more.
    """

    members: tuple[int, int]
    gain: float
    error: float
    saving: float
    saving_interval: tuple[float, float]
    at: dict[int, tuple[float, float] | None]

    @property
    def is_worth_having(self) -> bool:
        """Whether the gain is larger than its standard error."""
        return self.gain > self.error


class PairStudy:
    """Single experts and pairs of them on some images.

    Args:
        predictions: predictions for the images.
        among: pool indices of the experts, rising.
        reference: the expert that savings and differences refer to.
    """

    def __init__(self, predictions: Predictions, among: tuple[int, ...], reference: int):
        self.predictions, self.among, self.reference = predictions, among, reference
        self.costs = predictions.costs.of_experts
        self.budgets = (1 - SAVINGS) * self.costs[reference]
        self._outputs = PoolOutputs(predictions)
        self.right = self._outputs.right.numpy()

    def hull_weights(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Random routing among single experts, as is best on some of the images: float64 (S, N), the share of each at
        each saving."""
        accuracy = self.right[rows].mean(0)
        best = random_mix_hull(self.costs, accuracy, self.budgets)
        weights = np.zeros((len(SAVINGS), len(self.costs)))
        for at, (budget, target) in enumerate(zip(self.budgets, best, strict=True)):
            weights[at] = _shares(self.costs, accuracy, budget, target)
        return weights

    @cached_property
    def _at_random(self) -> np.ndarray:
        """Whether each image is right by the best random routing among single experts: float64 (n, S)."""
        return self.right @ self.hull_weights().T

    def confidence(self, expert: int) -> np.ndarray:
        """The largest probability of an expert alone: float32 (n,)."""
        return self._outputs.evidence((expert,), None)[:, TOP_PROBABILITY].numpy()

    def single(self, expert: int) -> RoutingCurve:
        right = np.broadcast_to(self.right[:, expert, None], (len(self.right), len(SAVINGS)))
        return RoutingCurve((expert,), right, self.costs[expert] <= self.budgets)

    def pair(self, small: int, big: int) -> RoutingCurve:
        """The untuned routing of two experts."""
        outputs, members, count = self._outputs, (small, big), len(self.right)
        rows = sample_rows(count, WEIGHT_ROWS)
        log_probs = [outputs.log_probs[member][rows] for member in members]
        weights = fit_mixing_weights(log_probs, outputs.targets[rows], outputs.tail)
        mixed = (outputs.answers(members, weights) == outputs.targets).numpy()
        place = np.empty(count)
        place[np.argsort(self.confidence(small), kind="stable")] = (np.arange(count) + 0.5) / count
        deferred = np.clip((self.budgets - self.costs[small]) / self.costs[big], 0, 1)
        right = np.where(place[:, None] < deferred, mixed[:, None], self.right[:, small, None])
        return RoutingCurve(members, right, self.costs[small] <= self.budgets)

    def value(self, curve: RoutingCurve) -> PairValue:
        """What a pair is worth, on these images."""
        small, big = curve.members
        choice = curve.affordable & (self.budgets <= self.costs[small] + self.costs[big])
        # Where the first expert alone costs as much as the reference, there is nothing to choose.
        over_hull = (curve.right - self._at_random) @ (choice / max(choice.sum(), 1))
        difference = curve.right - self.right[:, self.reference, None].astype(float)
        count = len(difference)
        mean, error = difference.mean(0), difference.std(0) / count**0.5
        usable = curve.affordable

        def largest(kept: np.ndarray) -> float:
            return float(SAVINGS[kept & usable].max(initial=0.0))

        at = {}
        for percent in (20, 40, 60):  # as `SAVINGS` has one value for each per cent
            at[percent] = (float(mean[percent]), float(error[percent])) if usable[percent] else None
        return PairValue(
            (small, big),
            float(over_hull.mean()),
            float(over_hull.std() / count**0.5),
            largest((mean >= error / 2) & (mean > 0)),
            (largest((mean >= Z * error) & (mean > 0)), largest(mean >= -Z * error)),
            at,
        )

    def curves(self) -> list[RoutingCurve]:
        """Every single expert and every pair."""
        pairs = itertools.combinations(self.among, 2)
        return [*map(self.single, self.among), *(self.pair(*pair) for pair in pairs)]


def _shares(costs: tuple[float, ...], accuracy: np.ndarray, budget: float, target: float) -> np.ndarray:
    """The shares of at most two experts whose random routing reaches the hull at a budget: float64 (N,)."""
    shares = np.zeros(len(costs))
    budget = max(budget, min(costs))
    for i, j in itertools.combinations_with_replacement(range(len(costs)), 2):
        if costs[i] > budget:
            continue
        share = 0.0 if costs[j] == costs[i] else min((budget - costs[i]) / (costs[j] - costs[i]), 1.0)
        if accuracy[i] + share * (accuracy[j] - accuracy[i]) >= target - 1e-12:
            shares[i] += 1 - share
            shares[j] += share
            break
    return shares
