"""Statistics of fronts and samples: dominance, hulls, hypervolume, intervals, AUROC; on arrays, without models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, rankdata


BOOTSTRAP_DRAWS = 2000
LEVEL = 0.95
Z = float(norm.ppf((1 + LEVEL) / 2))
"""Half the width of an interval of this level, in standard errors."""


@dataclass(frozen=True)
class Difference:
    """A paired difference of accuracy on the same images: mean, standard error, 95 % bootstrap interval."""

    mean: float
    standard_error: float
    interval: tuple[float, float]


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share of `count` images (Wilson 1927), which has a width even if all or none are
    right."""
    share, z2 = min(max(share, 0.0), 1.0), Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    # Rounding must not exclude the share itself.
    return float(max(min(middle - half, share), 0.0)), float(min(max(middle + half, share), 1.0))


def paired_difference(wins: float, losses: float, count: int) -> tuple[float, float]:
    """Mean difference of accuracy on the same images and its standard error.

    Args:
        wins, losses: number of images that only the first, and that only the second gets right.
        count: number of images.
    """
    mean = (wins - losses) / count
    return mean, math.sqrt(max((wins + losses) / count - mean**2, 0.0) / count)


def paired_interval(wins: int, losses: int, count: int) -> tuple[float, float]:
    """95 % interval of a difference of accuracy on the same few images: that of `paired_difference` with half an image
    added to each of the four outcomes of a pair, so that it has a width even where the two never disagree (Agresti and
    Min 2005, "Simple improved confidence intervals for comparing matched proportions")."""
    mean, error = paired_difference(wins + 0.5, losses + 0.5, count + 2)
    return max(mean - Z * error, -1.0), min(mean + Z * error, 1.0)


class Bootstrap:
    """The bootstrap of differences between operating points and single experts, on the same images.

    It resamples images, and with them everything that is computed from them: accuracy and cost of a point, accuracies
    of the experts, and so random routing among them. Images of the same outcome are drawn together (multinomially).

    Args:
        experts: bool (n, N), whether each expert is right.
        expert_costs: cost of one image for each expert.
        reference: index of the expert that points are compared with.
        seed: random seed.
    """

    def __init__(self, experts: np.ndarray, expert_costs: Sequence[float], reference: int, seed: int = 0):
        self.expert_costs, self.reference, self.seed = expert_costs, reference, seed
        self._patterns, self._pattern = np.unique(experts, axis=0, return_inverse=True)
        self._pattern = self._pattern.ravel()

    def differences(self, right: np.ndarray, cost: np.ndarray) -> tuple[Difference, Difference]:
        """Differences of accuracy between an operating point and the reference, and random routing at its cost.

        Args:
            right: bool (n,), whether the point is right.
            cost: float (n,), cost of each image at the point.
        """
        count = len(right)
        levels, level = np.unique(cost, return_inverse=True)
        code = (self._pattern * len(levels) + level.ravel()) * 2 + right
        codes, counts = np.unique(code, return_counts=True)
        patterns, of_level = np.divmod(codes // 2, len(levels))
        values = np.column_stack([codes % 2, self._patterns[patterns], levels[of_level]])
        draws = np.random.default_rng(self.seed).multinomial(count, counts / count, BOOTSTRAP_DRAWS)
        sampled = np.vstack([counts, draws]) @ values / count
        accuracy, by_expert, costs = sampled[:, 0], sampled[:, 1:-1], sampled[:, -1]
        hulls = random_mix_hull(self.expert_costs, by_expert, costs)
        return _difference(accuracy - by_expert[:, self.reference]), _difference(accuracy - hulls)


def _difference(values: np.ndarray) -> Difference:
    """Summarise values, the first of which is that of the original images, the others of resampled ones."""
    low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(float(values[0]), float(values[1:].std()), (float(low), float(high)))


def non_dominated(costs: Sequence[float] | np.ndarray, accuracy: Sequence[float] | np.ndarray) -> list[int]:
    """Indices of the points on the Pareto front, by rising cost; of equal points the first."""
    order = np.lexsort((np.arange(len(costs)), -np.asarray(accuracy, dtype=float), np.asarray(costs, dtype=float)))
    best, front = -math.inf, []
    for index in order.tolist():
        if accuracy[index] > best:
            best = accuracy[index]
            front.append(index)
    return front


def random_mix_hull(costs: ArrayLike, accuracy: ArrayLike, at: ArrayLike) -> np.ndarray:
    """Accuracy of random routing between two experts at a mean cost: the upper convex hull of the static models.

    Below the cost of the cheapest expert it is the accuracy of that expert; above the cost of the best it is constant.

    Args:
        costs: (N,), costs of the experts.
        accuracy: (..., N), accuracies of the experts.
        at: (...), mean costs.

    Returns:
        float64 (...).
    """
    x, y = np.asarray(costs, dtype=float), np.asarray(accuracy, dtype=float)
    budget = np.maximum(np.asarray(at, dtype=float), x.min())
    # The hull is the maximum over all experts that are cheap enough and all chords that span the cost.
    best = np.where(x <= budget[..., None], y, -np.inf).max(-1)
    for i, j in itertools.permutations(range(len(x)), 2):
        if x[i] < x[j]:
            share = (budget - x[i]) / (x[j] - x[i])
            chord = y[..., i] + share * (y[..., j] - y[..., i])
            best = np.where((share >= 0) & (share <= 1), np.maximum(best, chord), best)
    return best


def hypervolume(costs: Sequence[float], accuracy: Sequence[float], reference: tuple[float, float]) -> float:
    """Area dominated by points, relative to a reference (cost, accuracy), in units of the reference's cost."""
    limit, floor = reference
    area, best, previous = 0.0, floor, None
    for index in non_dominated(costs, accuracy):
        if costs[index] >= limit or accuracy[index] <= best:
            continue
        if previous is not None:
            area += (costs[index] - previous) * (best - floor)
        best, previous = accuracy[index], costs[index]
    return float((area + (limit - previous) * (best - floor)) / limit) if previous is not None else 0.0


def hull_hypervolume(costs: Sequence[float], accuracy: Sequence[float], reference: tuple[float, float]) -> float:
    """`hypervolume` of random routing among experts."""
    limit, floor = reference
    at = np.unique(np.clip([*costs, limit], None, limit))
    height = random_mix_hull(costs, accuracy, at) - floor
    below = np.flatnonzero((height[:-1] < 0) & (height[1:] > 0))
    crossing = at[below] - height[below] * (at[below + 1] - at[below]) / (height[below + 1] - height[below])
    # The hull is piecewise linear, with corners at the experts and at the crossing of the reference accuracy, so the
    # trapezoid rule is exact.
    at, height = np.append(at, crossing), np.append(height, np.zeros(len(crossing)))
    order = np.argsort(at, kind="stable")
    return float(np.trapezoid(np.maximum(height[order], 0.0), at[order]) / limit)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that a positive has a larger score than a negative; None unless there are both."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))
