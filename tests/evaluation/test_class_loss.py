"""What a class is said to lose at most, from few images of each class, is what it loses."""

from __future__ import annotations

import numpy as np
import pytest
from graded_pool import make_predictions

from pertinence import SearchArguments
from pertinence.evaluation.class_loss import class_loss_bounds
from pertinence.evaluation.outcomes import evaluate_experts
from pertinence.search.front_search import search_front
from pertinence.utils.distributed import make_accelerator


@pytest.mark.parametrize(("num_classes", "images"), [(10, 500), (100, 50), (1000, 10)])
def test_bounds_hold_for_the_classes_that_they_are_promised_for(num_classes, images):
    """Classes whose true losses are known: of 95 % at least the loss is below the bound, by far tighter bounds than
    each class alone would give."""
    rng, held, width = np.random.default_rng(0), [], []
    classes = np.repeat(np.arange(num_classes), images)
    for spread in (0.0, 0.01, 0.03):
        for _ in range(5):
            true = np.clip(0.005 + spread * rng.standard_normal(num_classes), -0.05, 0.15)
            chance = rng.random(len(classes))
            loses, wins = (chance < 0.05 + true[classes]), chance > 0.95
            bounds = class_loss_bounds(~loses, ~wins, classes, true.mean())
            held.append((true <= bounds).mean())
            width.append((bounds - true).mean())
    assert np.mean(held) >= 0.95
    alone = 1.645 * (0.1 / images) ** 0.5
    assert np.mean(width) < alone


def test_a_point_that_answers_as_the_reference_expert_loses_nothing():
    right = np.random.default_rng(0).random(200) < 0.7
    assert class_loss_bounds(right, right, np.arange(200) % 7, 0.0).tolist() == [0.0] * 7


def test_the_search_bounds_the_losses_of_its_points():
    search, report = make_predictions(600, seed=0), make_predictions(300, seed=1)
    args = SearchArguments(recipe="cascade", baselines=False, front_size=6)
    front = search_front("abc", search, report, args, make_accelerator("cpu")).evaluation.front
    losses = {point.name: point.select.class_loss for point in front}
    reference = next(point for point in front if point.members == (2,) or point.name == "most-accurate")
    assert losses["fastest"] > losses[reference.name]
    alone = [one.figures.accuracy for one in evaluate_experts(search)]
    assert losses["fastest"] > alone[2] - alone[0], "the worst class loses more than the mean"
    assert front.choose(max_class_loss=0.2).name != "fastest" or losses["fastest"] <= 0.2
    agreeing = search_front("abc", search.agreeing(), report.agreeing(), args, make_accelerator("cpu")).evaluation
    assert {point.select.class_loss for point in agreeing.front} == {None}
