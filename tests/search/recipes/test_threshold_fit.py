"""Thresholds tuned by enumeration: against brute force, and as the model decides."""

import itertools

import numpy as np
import pytest
from graded_pool import make_predictions

from pertinence.evaluation.outcomes import evaluate_point
from pertinence.predictions.predictions import Predictions
from pertinence.search.recipes.outputs import FoldedOutputs
from pertinence.search.recipes.threshold_fit import _sum_over_exits, fit_thresholds


GMACS = (1.0, 3.0, 10.0)


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    return make_predictions(500)


@pytest.mark.parametrize("latency", [False, True])
@pytest.mark.parametrize("mixing", [True, False])
@pytest.mark.parametrize("members", [(0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_they_are_what_the_model_decides(predictions, members, mixing, latency):
    if latency:
        predictions = predictions.with_cost("latency", [2.0, 5.0, 7.0])
    curve = fit_thresholds(FoldedOutputs(predictions, 5, 0, mixing), members)
    assert len(curve.cost) > 10
    for index in range(0, len(curve.cost), 9):
        measured = evaluate_point(curve.point, curve.heads(index), predictions).figures
        # An image or two lie on a threshold, which is a quantile of these very images.
        assert measured.cost == pytest.approx(curve.cost[index], rel=0.02)
        assert measured.expert_shares == pytest.approx(curve.shares[index], abs=5 / len(predictions))
        assert measured.accuracy == pytest.approx(curve.accuracy[index], abs=0.02)
        assert all((stage.mixing is None) != mixing for stage in curve.point.stages)


def test_no_other_combination_of_quantiles_is_better_and_cheaper(predictions):
    outputs = FoldedOutputs(predictions, 5, 0)
    curve = fit_thresholds(outputs, (0, 2))
    confidence = outputs.of_images.evidence((0,), outputs.mixing_weights((0,)).repeat_interleave(outputs.fold_size, 0))
    confidence, judged = confidence[:, 5].numpy()[outputs.judged.numpy()], outputs.judged
    right = [outputs.result(ran)[0][judged].numpy() for ran in ((0,), (0, 2))]
    for threshold in np.quantile(confidence, np.linspace(0, 1, 30)):
        exits = confidence >= threshold
        accuracy = np.where(exits, right[0], right[1]).mean()
        cost = np.where(exits, 1.0, 11.0).mean()
        assert ((curve.accuracy >= accuracy - 0.01) & (curve.cost <= cost + 0.15)).any()


@pytest.mark.parametrize("stages", [1, 2])
def test_sums_over_exits_are_those_of_brute_force(stages):
    rng = np.random.default_rng(0)
    thresholds = [np.append(0.0, np.sort(rng.random(4))) for _ in range(stages)]  # all reach the first
    confidence = [rng.random(200) for _ in range(stages)]
    values = [rng.random(200) for _ in range(stages + 1)]
    levels = [np.searchsorted(t, c, side="right") - 1 for t, c in zip(thresholds, confidence, strict=True)]
    found = _sum_over_exits(values, levels, thresholds)
    for chosen in itertools.product(range(5), repeat=stages):
        total = 0.0
        for image in range(200):
            exits = [c[image] >= t[at] for c, t, at in zip(confidence, thresholds, chosen, strict=True)]
            total += values[exits.index(True) if True in exits else stages][image]
        assert found[chosen] == pytest.approx(total)
