"""Untuned routing of pairs: against brute force, and beside random routing among single experts."""

import numpy as np
import pytest
from graded_pool import make_predictions

from pertinence.evaluation.intervals import random_mix_hull
from pertinence.predictions.predictions import Predictions
from pertinence.search.nested import SAVINGS
from pertinence.search.pairs import PairStudy
from pertinence.search.recipes.outputs import fit_mixing_weights


COSTS = (1.0, 3.0, 10.0)


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    return make_predictions(800)


@pytest.fixture(scope="module")
def study(predictions) -> PairStudy:
    return PairStudy(predictions, (0, 1, 2), 2)


def test_a_pair_defers_the_images_that_the_first_is_least_sure_of(predictions, study):
    curve = study.pair(0, 2)
    log_probs = [predictions.experts[index].scores.log_softmax(1) for index in (0, 2)]
    weights = fit_mixing_weights(log_probs, predictions.labels)
    mixed = sum(w * part for w, part in zip(weights, log_probs, strict=True)).argmax(1)
    order = log_probs[0].max(1).values.argsort()
    for at in (0, 30, 60, 85):
        deferred = order[: round((10 * (1 - SAVINGS[at]) - 1) / 10 * 800)]
        answers = log_probs[0].argmax(1).clone()
        answers[deferred] = mixed[deferred]
        right = (answers == predictions.labels).double().mean().item()
        assert curve.right[:, at].mean() == pytest.approx(right, abs=2 / 800)
    assert curve.affordable.tolist() == [10 * (1 - saved) >= 1 for saved in SAVINGS]


def test_random_routing_is_the_hull_image_by_image(predictions, study):
    mixed = predictions.correct().double().numpy() @ study.hull_weights().T
    hull = random_mix_hull(COSTS, predictions.correct().double().mean(0).numpy(), study.budgets)
    assert mixed.mean(0) == pytest.approx(hull)
    assert study.hull_weights().sum(1) == pytest.approx(1)
    assert (study.hull_weights() @ COSTS <= np.maximum(study.budgets, 1.0) + 1e-9).all()


def test_what_a_pair_is_worth(study):
    value = study.value(study.pair(0, 2))
    assert value.members == (0, 2)
    assert value.gain > 0
    assert 0 < value.error < 0.03
    assert value.saving_interval[0] <= value.saving <= value.saving_interval[1]
    assert set(value.at) == {20, 40, 60}
    assert value.at[20][0] > value.at[60][0]


def test_a_pair_that_costs_more_than_the_reference_is_worth_nothing(predictions):
    study = PairStudy(predictions, (0, 1, 2), 0)
    value = study.value(study.pair(1, 2))
    assert (value.gain, value.error, value.saving) == (0, 0, 0)
    assert value.at == {20: None, 40: None, 60: None}
    assert not value.is_worth_having
