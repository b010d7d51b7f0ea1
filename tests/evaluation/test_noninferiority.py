"""The test behind a guarantee: right too often never, and as powerful as it can be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from pertinence.evaluation.noninferiority import DOUBT, images_needed, noninferiority_p_value


LEVEL = 0.05


def all_outcomes(count: int) -> np.ndarray:
    """Every (losses, wins) of so many images."""
    return np.array([(lost, won) for lost in range(count + 1) for won in range(count + 1 - lost)])


def probabilities(outcomes: np.ndarray, count: int, loss: float, win: float) -> np.ndarray:
    rest = count - outcomes.sum(1)
    return multinomial.pmf(np.column_stack([outcomes, rest]), count, [loss, win, max(1 - loss - win, 0.0)])


@pytest.mark.parametrize(("count", "limit"), [(8, 0.3), (30, 0.1), (30, 0.02)])
def test_p_values_are_never_too_small_whatever_the_truth(count, limit):
    outcomes = all_outcomes(count)
    p_values = np.array([noninferiority_p_value(int(lost), int(won), count, limit) for lost, won in outcomes])
    order = np.argsort(p_values)
    for excess in (0.0, 0.03, 0.2):  # at the limit and beyond it
        for win in np.linspace(0, (1 - limit - excess) / 2, 30):
            reached = probabilities(outcomes, count, win + limit + excess, win)[order].cumsum()
            last = np.append(np.diff(p_values[order]) > 0, True)  # of equal ones all
            assert (reached[last] <= p_values[order][last] + 1e-12).all()


@pytest.mark.parametrize("win", [0.0, 0.004, 0.03])
def test_at_the_limit_a_test_is_wrong_as_often_as_it_may_be(win):
    count, limit, draws = 1000, 0.02, 4000
    counts = np.random.default_rng(0).multinomial(count, [win + limit, win, 1 - 2 * win - limit], draws)
    wrong = np.mean([noninferiority_p_value(int(lost), int(won), count, limit) <= LEVEL for lost, won, _ in counts])
    assert 0.02 < wrong <= LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / draws)


@pytest.mark.parametrize(("losses", "wins"), [(0, 0), (1, 0), (1, 2), (0, 4), (3, 3)])
def test_p_value_is_the_largest_probability_of_anything_as_clear(losses, wins):
    count, limit = 14, 0.3
    outcomes = all_outcomes(count)

    def statistic(lost, won):
        return (limit * count - lost + won) / np.sqrt(lost + won + limit * count / 2)

    as_clear = statistic(*outcomes.T) >= statistic(losses, wins) - 1e-9
    worst = max(
        probabilities(outcomes, count, win + limit, win)[as_clear].sum()
        for win in np.linspace(0, (1 - limit) / 2, 2000)
    )
    # DOUBT pays for not having searched where P(win) cannot be; cells bound from above.
    assert worst <= noninferiority_p_value(losses, wins, count, limit) <= 1.1 * worst + 2 * DOUBT


@pytest.mark.parametrize(("count", "limit"), [(500, 0.02), (3000, 0.005)])
def test_p_value_rises_with_losses_and_falls_with_wins_and_limit(count, limit):
    p = np.array([[noninferiority_p_value(lost, won, count, limit) for won in range(20)] for lost in range(20)])
    assert (np.diff(p, axis=0) >= 0).all()
    assert (np.diff(p, axis=1) <= 1e-3).all()  # the interval of the nuisance parameter moves, too
    looser = np.array([noninferiority_p_value(lost, lost, count, 2 * limit) for lost in range(20)])
    assert (looser < np.diag(p)).all()


def test_rare_disagreement_is_the_clearer():
    p = [noninferiority_p_value(both, both, 3000, 0.005) for both in (0, 5, 20, 80, 300)]
    assert p == sorted(p)
    assert p[0] < 1e-3 < 0.2 < p[-1]


def test_a_loss_at_the_limit_proves_nothing():
    assert noninferiority_p_value(15, 0, 3000, 0.005) == noninferiority_p_value(90, 20, 3000, 0.005) == 1.0


def test_an_always_winning_point_is_beyond_doubt():
    assert noninferiority_p_value(0, 50, 50, 0.1) == DOUBT


def power(count: int, loss: float, win: float, limit: float) -> float:
    """Exact probability that the test passes at 5 %."""
    total, most = 0.0, -1
    for won in range(int(binom.isf(1e-6, count, win)) + 1):
        while noninferiority_p_value(most + 1, won, count, limit) <= LEVEL:
            most += 1
        total += binom.pmf(won, count, win) * binom.cdf(most, count - won, loss / (1 - win))
    return total


def test_power_is_that_of_a_test_that_knows_how_often_the_two_disagree():
    # A mixture of bets passes at 2 % and 35 %.
    assert power(3000, 0.01, 0.008, 0.005) == pytest.approx(0.31, abs=0.02)
    assert power(3000, 0.004, 0.004, 0.005) == pytest.approx(0.89, abs=0.02)


@pytest.mark.parametrize(("losses", "wins"), [pytest.param(30, 24, marks=pytest.mark.nightly), (12, 12), (20, 30)])
def test_so_many_images_are_enough_four_times_in_five(losses, wins):
    needed = images_needed(losses, wins, 3000, 0.005, 0.95)
    assert 0.72 < power(needed, losses / 3000, wins / 3000, 0.005) < 0.88
    assert images_needed(losses, wins, 3000, 0.005, 0.99) > needed


def test_images_needed_where_nothing_is_lost_and_where_too_much_is():
    needed = images_needed(0, 0, 100, 0.005, 0.95)
    assert noninferiority_p_value(0, 0, needed, 0.005) <= LEVEL
    assert noninferiority_p_value(0, 0, needed - 20, 0.005) > LEVEL
    assert images_needed(20, 5, 3000, 0.005, 0.95) is None
