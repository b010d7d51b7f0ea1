"""An exact test that one classifier is not much worse than another, on the same images."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import bdtr
from scipy.stats import beta, binom, norm


DOUBT = 1e-4
"""Probability that is spent on an interval for the nuisance parameter; part of every p-value."""
OUTSIDE = 1e-10
"""Probability of the counts of wins on either side that are not summed over; counted in full."""
FINENESS = 0.02
"""Width of a cell of the nuisance parameter, in standard deviations of its estimate."""


@lru_cache(maxsize=65536)
def noninferiority_p_value(losses: int, wins: int, count: int, limit: float) -> float:
    """Exact p-value of the hypothesis that the loss of accuracy is at least `limit`.

    The loss is P(loss) - P(win), and nothing is known of how often the two disagree. Outcomes are ordered by a
    statistic that is the clearer the rarer they do: z = (limit n - losses + wins) / sqrt(losses + wins + limit n / 2).
    The p-value is the largest probability, of all distributions of the hypothesis, of a z at least as large as the
    observed one: an unconditional exact test (Hsueh, Liu and Chen 2001, Biometrics 57:478). Why it holds for any n:

    - z falls with each loss and rises with each win while it is positive (its derivative by wins has the sign of
      3 losses + wins). So of all distributions with the same P(win) the worst has P(loss) = P(win) + limit, and
      within a cell [low, high] of P(win) none is worse than P(loss) = low + limit, P(win) = high: a finite maximum
      over cells bounds the supremum.
    - P(win) is searched only within its Clopper-Pearson interval, which it leaves with probability `DOUBT`, which is
      added (Berger and Boos 1994, JASA 89:1012).

    Betting e-values (Waudby-Smith and Ramdas 2023) are simpler and allow peeking, which nobody needs here; a mixture
    of 40 bets takes 2.5 times the images.

    Args:
        losses, wins: images that only the reference, and only the other gets right.
        count: n, number of images.
        limit: between 0 and 1.

    Returns:
        At most 1; 1 where the observed loss is not below the limit.
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
    """About how many images show a loss below the limit, if the two go on to disagree as they did.

    By the normal distribution: the test passes with probability `power`.

    Args:
        losses, wins: images that only the reference, and only the other got right.
        count: of so many.
        limit: of the loss.
        confidence: of the test.
        power: four in five by default.

    Returns:
        Two significant digits, rounded up; None where the loss that was seen is not below the limit.
    """
    lost, won = losses / count, wins / count
    gap = limit - (lost - won)
    if gap <= 0:
        return None
    at_limit = math.sqrt(2 * won + limit - limit**2)
    as_seen = math.sqrt(max(lost + won - (lost - won) ** 2, 0.0))
    needed = ((norm.ppf(confidence) * at_limit + norm.ppf(power) * as_seen) / gap) ** 2
    needed = max(needed, math.log(1 - confidence) / math.log1p(-limit))  # where nothing is ever lost
    unit = 10.0 ** max(math.floor(math.log10(needed)) - 1, 0)
    return int(math.ceil(needed / unit) * unit)
