"""Families of cascades on the images of a search: which one makes the front where, and what it states."""

import numpy as np
import pytest
from graded_pool import make_predictions

from pertinence.evaluation.outcomes import evaluate_experts, evaluate_point
from pertinence.search.nested import SAVINGS
from pertinence.search.recipes.base import Problem
from pertinence.search.recipes.families import STARTS, THRESHOLDS
from pertinence.search.recipes.study import LONGEST, CascadeStudy, _monotone


@pytest.fixture(scope="module")
def study() -> CascadeStudy:
    return CascadeStudy(Problem(make_predictions(1500)))


def test_each_point_is_of_the_family_that_is_taken_at_its_cost(study):
    choice = np.where(np.arange(len(SAVINGS)) < 50, 0, len(study.families) - 1)
    by_recipe = {"thresholds": [], "cascade": []}
    for candidate in study.front(choice):
        by_recipe.setdefault(candidate.point.recipe, []).append(1 - candidate.cost / 10.0)
    assert min(by_recipe["thresholds"]) >= 0.49
    assert max(by_recipe["cascade"]) <= 0.51


@pytest.mark.parametrize("name", [STARTS, THRESHOLDS, LONGEST])
def test_stated_figures_never_fall_and_hold_on_other_images(study, name):
    unseen = make_predictions(6000, seed=1)
    front = study.front_of(name)
    costs, stated = ([getattr(one, key) for one in front] for key in ("cost", "accuracy"))
    assert costs == sorted(set(costs))
    assert stated == sorted(stated)
    drops = [
        one.accuracy - evaluate_point(one.point, one.heads, unseen).figures.accuracy
        for one in front[::4]
        if one.point.recipe != "static"
    ]
    # Both sets of images have a spread of their own, of 1.2 and 0.6 points.
    assert np.mean(drops) == pytest.approx(0, abs=0.03)


def test_what_is_known_of_single_experts_stays_as_it_is(study):
    alone = [one.figures.accuracy for one in evaluate_experts(study.predictions)]
    singles = [one for one in study.front_of(STARTS) if one.point.recipe == "static"]
    assert singles
    for one in singles:
        assert one.accuracy == alone[one.point.members[0]]
        assert one.figures.out_of_fold is None


def test_the_out_of_fold_estimate_is_kept_beside_the_stated_one(study):
    cascades = [one for one in study.front_of(STARTS) if one.point.recipe == "cascade"]
    reference = max(one.figures.accuracy for one in evaluate_experts(study.predictions))
    for one in cascades:
        assert one.figures.estimate
        assert one.versus_reference[0] == pytest.approx(one.figures.out_of_fold - reference)
    estimates = [one.figures.out_of_fold for one in cascades]
    assert estimates == sorted(set(estimates)), "by it they are chosen"


def test_an_expensive_expert_that_adds_nothing_is_used_where_it_pays_only():
    """Two equal experts and a third that guesses: a pair of the first two is enough."""
    predictions = make_predictions(1500, skills=(0.9, 1.2, 0.1), costs=(1.0, 2.0, 10.0))
    study = CascadeStudy(Problem(predictions))
    assert predictions.reference == 1
    cheap = [one for one in study.front(study.choice) if one.cost <= 3.5]
    assert max(one.accuracy for one in cheap) > evaluate_experts(predictions)[1].figures.accuracy
    assert all(2 not in one.point.members or one.figures.expert_shares[2] < 0.1 for one in cheap)


def test_values_become_monotone_around_fixed_ones():
    assert _monotone(np.array([0.1, 0.3, 0.2, 0.4]), np.zeros(4, dtype=bool)) == pytest.approx([0.1, 0.25, 0.25, 0.4])
    found = _monotone(np.array([0.1, 0.9, 0.5, 0.2, 0.8]), np.array([True, False, True, False, True])).tolist()
    assert (found[0], found[2], found[4]) == (0.1, 0.5, 0.8)
    assert found == sorted(found)
