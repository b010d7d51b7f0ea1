"""Families of chains: few, short, rising, and without experts that a cheaper one beats."""

import itertools

import pytest
import torch

from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.recipes.cascade import CascadeSpace
from pertinence.search.recipes.chains import MAX_MEMBERS, ChainFamily, dominated
from pertinence.search.recipes.thresholds import combination


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


def every(family):
    """Every chain once, as the search starts with them."""
    space = CascadeSpace(family)
    return list(dict.fromkeys(space.decode(genome)[0].members for genome in space.seeds))


def test_a_small_pool_runs_from_every_start():
    family = ChainFamily.of(predictions_of([0.5, 0.6, 0.7, 0.8]))
    assert every(family) == [(0, 1, 2, 3), (1, 2, 3), (2, 3)]


def test_a_clearly_beaten_expert_is_no_rung_unless_it_is_the_largest():
    assert dominated(predictions_of([0.5, 0.8, 0.7, 0.9]), range(4)) == {2}
    assert ChainFamily.of(predictions_of([0.5, 0.8, 0.7, 0.9])).rungs == (0, 1, 3)
    assert ChainFamily.of(predictions_of([0.5, 0.8, 0.7])).rungs == (0, 1, 2)
    assert not dominated(predictions_of([0.5, 0.701, 0.7]), range(3)), "one image is no evidence"


def test_the_first_rung_sees_a_smaller_image():
    """Every image pays for it."""
    family = ChainFamily((1, 2, 3, 4, 5, 6), (1, 3, 5), {1: 0, 3: 2, 5: 4})
    assert every(family) == [(0, 3, 5), (2, 5)]
    assert every(ChainFamily((1, 2, 3, 4), (0, 2, 3), {2: 1})) == [(0, 2, 3), (1, 3)]


@pytest.mark.parametrize("count", [9, 30, 67])
def test_chains_of_a_large_pool_are_short_and_rise(count):
    costs = [1.1**index for index in range(count)]
    family = ChainFamily(costs, tuple(range(count)))
    for members in every(family):
        assert 2 <= len(members) <= MAX_MEMBERS
        assert list(members) == sorted(set(members))
        assert members[-1] == count - 1
    assert len({members[0] for members in every(family)}) == count - 1
    sparse = family.chain(0, 3.0)
    assert all(costs[b] >= 3 * costs[a] for a, b in itertools.pairwise(sparse[:-1]))


def test_combinations_are_found_by_their_rank():
    every = list(itertools.combinations(range(7), 3))
    assert [combination(rank, 7, 3) for rank in range(len(every))] == every
