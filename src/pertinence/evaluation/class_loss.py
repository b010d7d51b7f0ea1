"""A bound on the accuracy that a class loses, from few images of each class."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm


LEVEL = 0.95
"""Share of the classes whose loss is at most their bound."""


def class_loss_bounds(
    right: np.ndarray, expected: np.ndarray, classes: np.ndarray, mean_loss: float, level: float = LEVEL
) -> np.ndarray:
    """Bound on the loss of accuracy of each class against the reference expert.

    The loss that a class of 50 images shows is mostly chance: where one image in ten is a disagreement, its standard
    error is 4.5 points, and the largest of 100 such losses says nothing. A bound for each class by itself would be as
    wide, so that no point but the reference would hold a limit. So classes are taken to be draws of one normal
    distribution: a class is expected to lose what all lose, and more or less by as much as the classes show to differ
    beyond chance (parametric empirical Bayes: Morris 1983, "Parametric empirical Bayes inference"). The bound is the
    95 % quantile of what it then loses. That the spread of the classes is itself uncertain is allowed for by adding a
    standard error to its estimate; else few images would look like equal classes, and the bound would be lax.

    Args:
        right: bool (n,), whether the operating point is right.
        expected: bool (n,), whether the reference expert is right.
        classes: int64 (n,), the class of each image.
        mean_loss: loss over all classes by the best estimate there is; that of these images, on which the point may
            have been fitted, only says how the classes differ.
        level: share of the classes whose loss is at most their bound; 0.5: the expected loss of each.

    Returns:
        float64 (C,), of the classes that have images, in their order.
    """
    _, place, counts = np.unique(classes, return_inverse=True, return_counts=True)
    loss = expected.astype(float) - right
    deviation = np.bincount(place, loss) / counts - loss.mean()
    # One variance for all images: a class's own would shrink those most that seem to lose most.
    noise = max((loss**2).mean() - loss.mean() ** 2, 0.0) / counts
    spread = sum(class_spread(deviation, noise))
    kept = spread / (spread + noise) if spread else np.zeros(len(counts))
    bounds: np.ndarray = mean_loss + kept * deviation + norm.ppf(level) * np.sqrt(kept * noise)
    return bounds


def class_spread(deviation: np.ndarray, noise: np.ndarray) -> tuple[float, float]:
    """Variance of the true losses of classes, without that of chance (DerSimonian and Laird 1986), and its standard
    error.

    Args:
        deviation: float64 (C,), loss of each class less that of all.
        noise: float64 (C,), variance of each by chance.
    """
    if len(deviation) < 2 or not noise.any():
        return 0.0, 0.0
    weights = 1 / noise
    excess = (weights * (deviation - np.average(deviation, weights=weights)) ** 2).sum() - (len(deviation) - 1)
    estimate = max(excess / (weights.sum() - (weights**2).sum() / weights.sum()), 0.0)
    return float(estimate), float(np.sqrt(2 / (len(deviation) - 1)) * (1 / weights.mean() + estimate))
