"""An exact non-inferiority test: one classifier is not much worse than another on the same images."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import bdtr
from scipy.stats import beta, binom, norm


DOUBT = 1e-4
"""Error probability of the interval for the nuisance parameter; a part of every p-value."""
OUTSIDE = 1e-10
"""Probability, on either side, of counts of wins that are not summed over; it is added in full."""
FINENESS = 0.02
"""Width of a cell of the nuisance parameter, in standard deviations of its estimate."""


@lru_cache(maxsize=65536)
def noninferiority_p_value(losses: int, wins: int, count: int, limit: float) -> float:
    """Exact p-value of the null hypothesis that the loss of accuracy is at least `limit`.

    The loss is P(loss) - P(win); how often the two classifiers disagree is unknown. Outcomes are ordered by a
    statistic that is larger the less they disagree: z = (limit n - losses + wins) / sqrt(losses + wins + limit n / 2).
    The p-value is the largest probability, over all distributions of the hypothesis, of a z at least as large as the
    observed one: an unconditional exact test (Hsueh, Liu and Chen 2001, Biometrics 57:478). It is valid for any n:

    - While z is positive, it falls with each loss and rises with each win (its derivative by wins has the sign of
      3 losses + wins). So among all distributions with the same P(win) the worst has P(loss) = P(win) + limit, and
      within a cell [low, high] of P(win) none is worse than P(loss) = low + limit, P(win) = high: a finite maximum
      over cells bounds the supremum.
    - P(win) is searched only within its Clopper-Pearson interval; the probability `DOUBT` that the interval misses it
      is added (Berger and Boos 1994, JASA 89:1012).

    Betting e-values (Waudby-Smith and Ramdas 2023) are simpler and allow peeking, which is not needed here; a mixture
    of 40 bets takes 2.5 times as many images.

    Args:
        losses, wins: number of images that only the reference, and that only the other classifier gets right.
        count: number of images, n.
        limit: between 0 and 1.

    Returns:
        At most 1; 1 if the observed loss is not below the limit.
    """
    allowance = limit * count
    lead = allowance - losses + wins
    if lead <= 0:
        return 1.0
    z = lead / math.sqrt(losses + wins + allowance / 2)
    low = float(beta.ppf(DOUBT / 2, wins, count - wins + 1)) if wins else 0.0
    high = float(beta.ppf(1 - DOUBT / 2, wins + 1, count - wins)) if wins < count else 1.0
    high = min(high, (1 - limit) / 2)  # P(loss) + P(win) <= 1
    if low >= high:
        return DOUBT
    cells = math.ceil((math.sqrt(high) - math.sqrt(low)) * math.sqrt(2 * count) / FINENESS)
    bounds = np.linspace(math.sqrt(low), math.sqrt(high), cells + 1)[:, None] ** 2
    lows, highs = bounds[:-1], bounds[1:]
    at = np.arange(binom.ppf(OUTSIDE, count, low), binom.isf(OUTSIDE, count, high) + 1)  # wins
    most = np.minimum(np.floor(_most_losses(z, at, allowance) + 1e-7), count - at)
    few_losses = bdtr(np.maximum(most, 0), (count - at).astype(int), (lows + limit) / (1 - highs))
    worst = (binom.pmf(at, count, highs) * np.where(most >= 0, few_losses, 0.0)).sum(1).max()
    return min(1.0, float(worst) + DOUBT + 2 * OUTSIDE)


def _most_losses(z: float, wins: np.ndarray, allowance: float) -> np.ndarray:
    """The losses at which the statistic is z: the smaller root of (allowance - losses + wins)^2 = z^2 variance."""
    return allowance + wins + z * z / 2 - z / 2 * np.sqrt(z * z + 6 * allowance + 8 * wins)


def images_needed(
    losses: int, wins: int, count: int, limit: float, confidence: float, power: float = 0.8
) -> int | None:
    """Estimate how many images the test needs to pass with probability `power`, at the observed rates of disagreement.

    The estimate uses the normal approximation.

    Args:
        losses, wins: number of images that only the reference, and that only the other classifier got right.
        count: number of images.
        limit: limit of the loss.
        confidence: confidence of the test.
        power: probability of passing.

    Returns:
        The number, rounded up to two significant digits; None if the observed loss is not below the limit.
    """
    lost, won = losses / count, wins / count
    gap = limit - (lost - won)
    if gap <= 0:
        return None
    at_limit = math.sqrt(2 * won + limit - limit**2)
    as_seen = math.sqrt(max(lost + won - (lost - won) ** 2, 0.0))
    needed = ((norm.ppf(confidence) * at_limit + norm.ppf(power) * as_seen) / gap) ** 2
    needed = max(needed, math.log(1 - confidence) / math.log1p(-limit))  # even without any losses
    unit = 10.0 ** max(math.floor(math.log10(needed)) - 1, 0)
    return int(math.ceil(needed / unit) * unit)
