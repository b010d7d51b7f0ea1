"""Chains: short, rising, and without experts that a cheaper one beats."""

import pytest
import torch

from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.recipes.chains import MAX_MEMBERS, dominated, rungs_of, spaced


def predictions_of(accuracies, count=2000):
    """Experts of rising cost that are right on so many images, the same ones as far as possible."""
    labels = torch.zeros(count, dtype=torch.int64)
    experts = []
    for accuracy in accuracies:
        scores = torch.zeros(count, 2)
        scores[:, 0] = 1.0
        scores[round(accuracy * count) :, 1] = 2.0
        experts.append(ExpertPredictions.keep(scores))
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs([2.0**index for index in range(len(accuracies))]))


def test_a_clearly_beaten_expert_is_no_rung_unless_it_is_the_largest():
    assert dominated(predictions_of([0.5, 0.8, 0.7, 0.9]), range(4)) == {2}
    assert rungs_of(predictions_of([0.5, 0.8, 0.7, 0.9]), range(4)) == (0, 1, 3)
    assert rungs_of(predictions_of([0.5, 0.8, 0.7]), range(3)) == (0, 1, 2)
    assert not dominated(predictions_of([0.5, 0.701, 0.7]), range(3)), "one image is no evidence"


def test_a_short_chain_keeps_every_rung():
    assert spaced((0, 2, 3), [1.0, 1.1, 1.2, 1.3]) == (0, 2, 3)


@pytest.mark.parametrize("count", [9, 30, 67])
def test_chains_of_a_large_pool_are_short_and_rise(count):
    costs = [1.1**index for index in range(count)]
    for start in range(count - 1):
        members = spaced(range(start, count), costs)
        assert 2 <= len(members) <= MAX_MEMBERS
        assert list(members) == sorted(set(members))
        assert (members[0], members[-1]) == (start, count - 1)
    long = spaced(range(count), costs)
    ratios = [costs[b] / costs[a] for a, b in zip(long[:-1], long[1:-1], strict=False)]
    assert max(ratios) / min(ratios) < 1.25, "costs rise by about the same factor"
