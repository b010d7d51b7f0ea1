"""Figures against brute force."""

import numpy as np
import pytest
import torch

from pertinence import Figures, OperatingPoint, PertinenceError, Stage
from pertinence.dispatcher import threshold_head
from pertinence.evaluation import (
    check_better_than_chance,
    evaluate_experts,
    evaluate_front,
    evaluate_oracle,
    evaluate_point,
    non_dominated,
    paired_difference,
    random_mix_hull,
    wilson_interval,
)
from pertinence.front import Front
from pertinence.predictions import ExpertPredictions, Predictions


GMACS = (1.0, 3.0, 10.0)


@pytest.fixture
def predictions() -> Predictions:
    """Three experts of rising skill on 500 images of four labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (500,), generator=generator)
    target = torch.nn.functional.one_hot(labels, 4)
    experts = [
        ExpertPredictions(skill * target + torch.randn(500, 4, generator=generator), None, None, None, 4)
        for skill in (1.0, 2.0, 3.0)
    ]
    return Predictions(tuple(experts), labels, GMACS, torch.arange(500))


def figures(accuracy, gmacs, samples=500) -> Figures:
    return Figures(accuracy, (0.0, 1.0), gmacs, (1.0, 0.0, 0.0), samples)


def test_cascade_equals_a_loop_over_images(predictions):
    point = OperatingPoint("chain", "thresholds", (0, 2), (Stage(0),))
    head = threshold_head(point, point.stages[0], 0.8, 3)
    measured = evaluate_point(point, [head], predictions)
    right, cost, last = [], [], []
    for row in range(len(predictions)):
        small, large = (predictions.experts[i].scores[row] for i in (0, 2))
        goes_on = small.softmax(0).max() < 0.8
        right.append(((large if goes_on else small).argmax() == predictions.labels[row]).item())
        cost.append(1.0 + head.gmacs + (10.0 if goes_on else 0.0))
        last.append(2 if goes_on else 0)
    assert measured.correct.tolist() == right
    assert measured.figures.gmacs == pytest.approx(np.mean(cost))
    assert measured.figures.expert_shares == pytest.approx(np.bincount(last, minlength=3) / 500)
    assert measured.figures.samples == 500


def test_experts_alone(predictions):
    for index, result in enumerate(evaluate_experts(predictions)):
        right = predictions.experts[index].scores.argmax(1) == predictions.labels
        assert result.figures.accuracy == pytest.approx(right.float().mean().item())
        assert result.figures.gmacs == GMACS[index]


def test_oracle_takes_the_cheapest_that_is_right(predictions):
    correct, cost = predictions.correct(), []
    for row in correct.tolist():
        cost.append(GMACS[row.index(True)] if any(row) else GMACS[0])
    oracle = evaluate_oracle(predictions).figures
    assert oracle.accuracy == pytest.approx(correct.any(1).float().mean().item())
    assert oracle.gmacs == pytest.approx(np.mean(cost))


def test_subset_speaks_of_its_rows_only(predictions):
    rows = torch.tensor([3, 1, 400])
    part = predictions.subset(rows)
    assert torch.equal(part.correct(), predictions.correct()[rows])
    assert torch.equal(part.subset(torch.tensor([2])).targets, predictions.labels[400:401])


def test_random_mix_hull_against_brute_force():
    experts = [figures(a, g) for a, g in [(0.5, 1), (0.55, 2), (0.8, 3), (0.7, 4), (0.9, 10)]]
    for cost in np.linspace(1, 10, 19):
        best = max(
            a.accuracy + (b.accuracy - a.accuracy) * (cost - a.gmacs) / (b.gmacs - a.gmacs)
            for a in experts
            for b in experts
            if a.gmacs <= cost <= b.gmacs and a.gmacs < b.gmacs
        )
        assert random_mix_hull(experts, cost) == pytest.approx(best)


def test_hull_stays_at_the_best_expert_beyond_it():
    experts = [figures(0.9, 1), figures(0.8, 5)]
    assert random_mix_hull(experts, 3) == 0.9


def test_non_dominated_against_brute_force():
    rng = np.random.default_rng(0)
    gmacs, accuracy = rng.integers(0, 12, 80), rng.integers(0, 12, 80)
    expected = {
        (gmacs[i], accuracy[i])
        for i in range(80)
        if not any(
            gmacs[j] <= gmacs[i] and accuracy[j] >= accuracy[i] and (gmacs[j], accuracy[j]) != (gmacs[i], accuracy[i])
            for j in range(80)
        )
    }
    found = non_dominated(gmacs, accuracy)
    assert {(gmacs[i], accuracy[i]) for i in found} == expected
    assert len(found) == len(expected)
    assert [gmacs[i] for i in found] == sorted(gmacs[i] for i in found)


def test_wilson_interval_known_values():
    low, high = wilson_interval(0.9, 100)  # 0.8256, 0.9448: Newcombe 1998, by the formula
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)


def test_paired_difference_ignores_what_both_get_right():
    ours, theirs = torch.ones(100).bool(), torch.ones(100).bool()
    theirs[:5] = False
    difference, error = paired_difference(ours, theirs)
    assert difference == pytest.approx(0.05)
    assert error == pytest.approx(np.sqrt(0.05 * 0.95 / 100))


def test_expert_no_better_than_chance_is_named():
    with pytest.raises(PertinenceError, match="'b' is right on 26.00 % of 100 images, no better than chance among 4"):
        check_better_than_chance(["a", "b"], [figures(0.9, 1, 100), figures(0.26, 2, 100)], 4)


def test_evaluation_says_which_points_lie_below_the_hull(predictions):
    everywhere = OperatingPoint("everywhere", "thresholds", (0, 1), (Stage(0),))
    heads = {"everywhere": [threshold_head(everywhere, everywhere.stages[0], 1.0, 3)]}  # pays for both, always
    single = OperatingPoint("single", "static", (2,))
    note = "Below a random mix of experts at the same cost: "
    assert note + "everywhere." in repr(evaluate_front(Front([everywhere], "abc"), heads, predictions, "everywhere"))
    assert note not in repr(evaluate_front(Front([single], "abc"), {}, predictions, "single"))


def test_evaluation_compares_with_the_largest_expert_on_the_same_images(predictions):
    single = OperatingPoint("single", "static", (1,))
    evaluation = evaluate_front(Front([single], "abc"), {}, predictions, "single")
    correct = predictions.correct().double()
    assert evaluation.versus_largest[0][0] == pytest.approx((correct[:, 1] - correct[:, 2]).mean().item())
