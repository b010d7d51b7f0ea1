"""Intervals, hulls, areas and ranks against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from pertinence.evaluation.intervals import (
    Bootstrap,
    Difference,
    auroc,
    hull_hypervolume,
    hypervolume,
    non_dominated,
    paired_difference,
    random_mix_hull,
    wilson_interval,
)


# Intervals


@pytest.mark.parametrize(("rights", "count"), [(20, 40), (90, 100), (973, 1000), (1, 500), (12, 12), (0, 12)])
def test_the_interval_is_that_of_scipy(rights, count):
    expected = binomtest(rights, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(rights / count, count) == pytest.approx((expected.low, expected.high))


def test_the_interval_stays_within_what_is_possible():
    assert wilson_interval(1.0 + 1e-16, 50) == wilson_interval(1.0, 50)
    for count in range(1, 200):
        assert wilson_interval(1.0, count)[1] == 1
        assert wilson_interval(0.0, count)[0] == 0


def test_the_interval_narrows_with_the_images():
    widths = [np.ptp(wilson_interval(0.8, count)) for count in (100, 400, 1600, 6400)]
    assert np.array(widths[:-1]) / widths[1:] == pytest.approx([2, 2, 2], rel=0.1)


# Differences


def paired(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A cascade of the first and the last of three experts: bool (n,) right, float (n,) cost, bool (n, 3) experts."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(count)
    experts = difficulty[:, None] + 0.1 * rng.normal(size=(count, 3)) < [0.6, 0.7, 0.8]
    goes_on = difficulty + 0.2 * rng.normal(size=count) > 0.6
    return np.where(goes_on, experts[:, 2], experts[:, 0]), np.where(goes_on, 11.0, 1.0), experts


COSTS = (1.0, 3.0, 10.0)


def mix_by_hand(costs, accuracy, at: float) -> float:
    """The best expert within the cost, or the best pair around it, tried one by one; the cheapest is always there."""
    at = max(at, min(costs))
    found = [a for c, a in zip(costs, accuracy, strict=True) if c <= at]
    for (c, a), (d, b) in itertools.permutations(zip(costs, accuracy, strict=True), 2):
        if c <= at <= d and c < d:
            found.append(((d - at) * a + (at - c) * b) / (d - c))
    return max(found)


def test_paired_difference_is_that_of_the_images():
    ours, _, experts = paired()
    theirs = experts[:, 1]
    each = ours.astype(float) - theirs
    found = paired_difference((ours & ~theirs).sum(), (~ours & theirs).sum(), len(ours))
    assert found == pytest.approx((each.mean(), each.std() / np.sqrt(len(each))))


def test_what_never_differs_has_no_error():
    assert paired_difference(0, 0, 10) == (0.0, 0.0)
    assert paired_difference(10, 0, 10) == (1.0, 0.0)


def test_the_mean_of_a_difference_is_exact():
    right, cost, experts = paired()
    to_reference, to_mix = Bootstrap(experts, COSTS, 2).differences(right, cost)
    assert to_reference.mean == pytest.approx(right.mean() - experts[:, 2].mean(), abs=1e-12)
    mix = mix_by_hand(COSTS, experts.mean(0), cost.mean())
    assert to_mix.mean == pytest.approx(right.mean() - mix, abs=1e-12)


def test_differences_are_resampled_image_by_image():
    right, cost, experts = paired()
    rng, drawn = np.random.default_rng(1), []
    for rows in rng.integers(0, len(right), (5000, len(right))):
        accuracy = experts[rows].mean(0)
        drawn.append(right[rows].mean() - np.array([accuracy[2], mix_by_hand(COSTS, accuracy, cost[rows].mean())]))
    found = Bootstrap(experts, COSTS, 2).differences(right, cost)
    for difference, plain in zip(found, np.transpose(drawn), strict=True):
        assert difference.standard_error == pytest.approx(plain.std(), rel=0.06)
        expected = np.quantile(plain, [0.025, 0.975])
        assert difference.interval == pytest.approx(expected, abs=0.2 * difference.standard_error)


def test_the_standard_error_of_a_difference_is_the_paired_one():
    right, cost, experts = paired(2000)
    to_reference = Bootstrap(experts, COSTS, 2).differences(right, cost)[0]
    wins, losses = (right & ~experts[:, 2]).sum(), (~right & experts[:, 2]).sum()
    assert to_reference.standard_error == pytest.approx(paired_difference(wins, losses, len(right))[1], rel=0.06)


def test_the_reference_does_not_differ_from_itself():
    _, _, experts = paired()
    same = Bootstrap(experts, COSTS, 2).differences(experts[:, 2], np.full(len(experts), COSTS[2]))[0]
    assert same == Difference(0.0, 0.0, (0.0, 0.0))


def test_one_seed_one_difference():
    right, cost, experts = paired()
    threes, four = [Bootstrap(experts, COSTS, 2, seed=3) for _ in range(2)], Bootstrap(experts, COSTS, 2, seed=4)
    assert threes[0].differences(right, cost) == threes[1].differences(right, cost)
    assert threes[0].differences(right, cost) != four.differences(right, cost)


# Fronts


@pytest.mark.parametrize("seed", range(5))
def test_non_dominated_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    costs, accuracy = rng.integers(0, 12, 80), rng.integers(0, 12, 80)
    points = list(zip(costs.tolist(), accuracy.tolist(), strict=True))
    dominated = [any(c <= cost and a >= best and (c, a) != (cost, best) for c, a in points) for cost, best in points]
    firsts = [index for index, point in enumerate(points) if points.index(point) == index and not dominated[index]]
    assert non_dominated(costs, accuracy) == sorted(firsts, key=lambda index: costs[index])


def test_no_point_is_no_front():
    assert non_dominated([], []) == []


# Random mixes


@pytest.mark.parametrize("seed", range(4))
def test_random_mix_hull_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    costs, accuracy = np.sort(rng.uniform(1, 10, 5)), rng.random(5)
    at = [0.5, *np.linspace(costs[0], costs[-1], 31), 12.0]
    found = [random_mix_hull(costs, accuracy, cost) for cost in at]
    assert found == pytest.approx([mix_by_hand(costs, accuracy, cost) for cost in at])


def test_many_mixes_at_once_are_each_of_them():
    rng = np.random.default_rng(0)
    accuracy, at = rng.random((6, 7, 3)), rng.uniform(0, 12, (6, 7))
    found = random_mix_hull(COSTS, accuracy, at)
    assert found.shape == (6, 7)
    for index in np.ndindex(6, 7):
        assert found[index] == pytest.approx(mix_by_hand(COSTS, accuracy[index], at[index]))


def test_a_mix_is_the_cheapest_expert_below_it_and_the_best_beyond_it():
    assert random_mix_hull(COSTS, np.array([0.5, 0.7, 0.8]), np.array([0.1, 1.0, 10.0, 99.0])) == pytest.approx(
        [0.5, 0.5, 0.8, 0.8]
    )


def test_a_mix_ignores_experts_that_a_cheaper_one_beats():
    at = np.array([1.0, 2.0, 3.0, 10.0])
    assert random_mix_hull(COSTS, np.array([0.9, 0.6, 0.8]), at).tolist() == [0.9] * 4


def test_of_two_experts_of_one_cost_the_better_is_mixed():
    assert random_mix_hull((1.0, 1.0, 3.0), np.array([0.2, 0.4, 0.8]), 2.0) == pytest.approx(0.6)


# Areas


def area_by_hand(costs, accuracy, reference: tuple[float, float]) -> float:
    """Sum over the cells of the grid that all coordinates span: each is dominated as a whole or not at all."""
    limit, floor = reference
    xs = sorted({limit, *(cost for cost in costs if cost < limit)})
    ys = sorted({floor, *(value for value in accuracy if value > floor)})
    area = 0.0
    for (left, right), (low, high) in itertools.product(itertools.pairwise(xs), itertools.pairwise(ys)):
        if any(c <= left and a >= high for c, a in zip(costs, accuracy, strict=True)):
            area += (right - left) * (high - low)
    return area / limit


@pytest.mark.parametrize("reference", [(1.0, 0.0), (0.5, 0.3), (2.0, 0.9), (0.7, -1.0)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_hypervolume_against_brute_force(seed, reference):
    costs, accuracy = np.random.default_rng(seed).random((2, 25)).round(1)
    assert hypervolume(costs, accuracy, reference) == pytest.approx(area_by_hand(costs, accuracy, reference))


def test_hypervolume_of_one_point_is_its_rectangle():
    assert hypervolume([2.0], [0.9], (10.0, 0.5)) == pytest.approx(0.8 * 0.4)


@pytest.mark.parametrize("point", [(10.0, 0.9), (11.0, 0.9), (2.0, 0.5), (2.0, 0.4)], ids=str)
def test_what_does_not_beat_the_reference_dominates_no_area(point):
    assert hypervolume([point[0]], [point[1]], (10.0, 0.5)) == 0.0


@pytest.mark.parametrize("limit", [0.5, 2.0, 5.0, 20.0])
@pytest.mark.parametrize("accuracy", [(0.5, 0.7, 0.8, 0.85), (0.5, 0.4, 0.9, 0.6), (0.9, 0.6, 0.7, 0.8)], ids=str)
def test_hull_hypervolume_against_a_fine_grid(accuracy, limit):
    costs, floor = (1.0, 3.0, 4.0, 10.0), 0.3
    at = np.linspace(costs[0], max(limit, costs[0]), 4001)
    heights = [mix_by_hand(costs, accuracy, cost) - floor for cost in at]
    expected = np.trapezoid(heights, at) / limit
    assert hull_hypervolume(costs, accuracy, (limit, floor)) == pytest.approx(expected, abs=1e-6)


def test_mixes_dominate_what_their_experts_dominate_and_more():
    accuracy, reference = (0.5, 0.7, 0.8), (10.0, 0.5)
    assert hull_hypervolume(COSTS, accuracy, reference) > hypervolume(COSTS, accuracy, reference)


# Ranks


@pytest.mark.parametrize("decimals", [6, 1, 0], ids=["no-ties", "ties", "mostly-ties"])
def test_auroc_is_the_share_of_pairs_in_order(decimals):
    rng = np.random.default_rng(0)
    positive = rng.random(120) < 0.3
    scores = (rng.normal(size=120) + positive).round(decimals)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))


def test_auroc_of_perfect_of_reversed_and_of_blind_scores():
    positive = np.array([True, True, False])
    assert auroc(np.array([3.0, 2.0, 1.0]), positive) == 1.0
    assert auroc(np.array([1.0, 2.0, 3.0]), positive) == 0.0
    assert auroc(np.array([1.0, 1.0, 1.0]), positive) == 0.5


def test_one_kind_of_image_has_no_auroc():
    scores = np.array([1.0, 2.0])
    assert auroc(scores, np.array([True, True])) is None
    assert auroc(scores, np.array([False, False])) is None
    assert auroc(scores[:0], np.array([], dtype=bool)) is None
