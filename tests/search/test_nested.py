"""Nested cross-validation: fronts are judged on images that neither fitted nor chose them."""

import numpy as np
import pytest
import torch

from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.nested import SAVINGS, NestedCurve, choose_by_cost, nested_curves


COUNT = 500


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(COUNT) % 5
    experts = [ExpertPredictions.keep(torch.randn(COUNT, 5, generator=generator)) for _ in range(2)]
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs((1.0, 10.0)))


def test_every_image_is_judged_once_by_what_was_fitted_to_the_others(predictions):
    fitted, judged = [], []

    def fit(train: Predictions):
        fitted.append(set(train.rows.tolist()))

        def judge(held: Predictions):
            judged.append(set(held.rows.tolist()))
            yield torch.ones(len(held), 1, dtype=torch.bool), np.array([10.0]), 0

        return judge

    nested_curves(predictions, fit, seed=0)
    assert sorted(row for rows in judged for row in rows) == list(range(COUNT))
    for train, held in zip(fitted, judged, strict=True):
        assert not train & held
        assert len(train | held) == COUNT


def test_the_curve_is_interpolated_between_points(predictions):
    """Two points: all images are right at full cost, every second one at a tenth of it."""

    def fit(train: Predictions):
        def judge(held: Predictions):
            right = torch.stack([held.rows % 2 == 0, torch.ones(len(held), dtype=torch.bool)], 1)
            yield right, np.array([1.0, 10.0]), 1

        return judge

    (curve,) = nested_curves(predictions, fit, seed=0)
    assert curve.accuracy == pytest.approx(np.interp(SAVINGS, [0, 0.9], [1.0, 0.5]))
    assert curve.area == pytest.approx(1 - 0.5 * 0.4 / 0.9)
    assert (curve.gain, curve.error) == (pytest.approx(0), pytest.approx(0))


def test_gains_are_paired_on_the_same_images(predictions):
    def fit(train: Predictions):
        def judge(held: Predictions):
            rows = held.rows
            for right in (rows % 2 == 0, (rows % 2 == 0) | (rows % 10 == 1)):
                yield right.unsqueeze(1), np.array([5.0]), 0

        return judge

    _, better = nested_curves(predictions, fit, seed=0)
    assert better.gain == pytest.approx(0.1)
    assert better.error == pytest.approx(np.sqrt(0.1 * 0.9 / COUNT), rel=1e-3)
    assert (better.area_gain, better.area_error) == (pytest.approx(0.1), pytest.approx(better.error[0]))


def test_only_judged_images_are_counted(predictions):
    def fit(train: Predictions):
        def judge(held: Predictions):
            assert (held.rows < 100).all()
            yield (held.rows < 50).unsqueeze(1), np.array([5.0]), 0

        return judge

    (curve,) = nested_curves(predictions, fit, seed=0, judged=torch.arange(100))
    assert curve.accuracy == pytest.approx(0.5)


def test_optimism_is_what_a_lucky_choice_loses_on_the_others(predictions):
    """Each fold's default is the point that its own images flatter: right on all that fitted it, on none left out."""

    def fit(train: Predictions):
        seen = torch.zeros(COUNT, dtype=torch.bool).index_fill_(0, train.rows, True)

        def judge(held: Predictions):
            lucky = seen[held.rows]
            yield torch.stack([lucky, held.rows % 2 == 0], 1), np.array([1.0, 10.0]), 0
            yield torch.stack([lucky, held.rows % 2 == 0], 1), np.array([1.0, 10.0]), 1

        return judge

    lucky, fair = nested_curves(predictions, fit, seed=0)
    assert lucky.accuracy[0] == pytest.approx(0.5)
    assert lucky.optimism == pytest.approx(0.0, abs=1e-6), "the curve itself is of images that were left out"
    assert fair.optimism == pytest.approx(0.0, abs=1e-6)


def test_optimism_is_of_choosing_where_the_curve_is_high(predictions):
    """The curve of all folds stands above what each fold's default reaches on its own images."""

    def fit(train: Predictions):
        def judge(held: Predictions):
            first = held.rows.min() < 5
            right = torch.stack([torch.full((len(held),), bool(first)), torch.full((len(held),), not first)], 1)
            yield right, np.array([1.0, 10.0]), int(first)  # always the point that fails here

        return judge

    (curve,) = nested_curves(predictions, fit, seed=0)
    assert curve.optimism > 0.1


def of_gain(gain: float, error: float) -> NestedCurve:
    ones = np.ones(len(SAVINGS))
    return NestedCurve(ones, gain * ones, error * ones, gain, error)


def test_another_front_is_taken_where_it_is_better_by_half_a_standard_error():
    first = of_gain(0.0, 0.0)
    assert (choose_by_cost([first, of_gain(0.4, 1.0)]) == 0).all()
    assert (choose_by_cost([first, of_gain(0.6, 1.0), of_gain(-1.0, 0.1)]) == 1).all()
    assert (choose_by_cost([first, of_gain(0.6, 1.0), of_gain(0.7, 1.0)]) == 2).all()
    assert (choose_by_cost([first, of_gain(0.0, 0.0)]) == 0).all(), "the simplest of equal ones"
    half = of_gain(0.0, 1.0)
    half.gain[:50] = 0.6
    assert choose_by_cost([first, half]).tolist() == [1] * 50 + [0] * 50
