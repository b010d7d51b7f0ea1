"""What must not change, or change in a known way, when the question is put another way: whole searches on tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from pertinence import PertinenceError, PredictionTable, SearchArguments, SearchResult
from pertinence.search.search import search_predictions


pytestmark = pytest.mark.nightly


NUM_LABELS, COUNT = 5, 900
GMACS = {"small": 1.0, "medium": 3.0, "large": 10.0}
SKILL = {"small": 1.2, "medium": 1.8, "large": 2.6}
FREE = 1e-6
NOISE = 0.02
"""Accuracy that other folds or rounding may make: about one and a half standard errors of paired answers here."""

Split = tuple[np.ndarray, dict[str, np.ndarray]]
"""Labels (n,), and scores (n, C) by model."""


def make_split(seed: int) -> Split:
    """Models of rising skill that find the same images hard; scores are multiples of 1/4096, which float32 adds
    exactly."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_LABELS, COUNT)
    ease, common = 1 / rng.gamma(2.0, 0.6, (COUNT, 1)), rng.normal(size=(COUNT, NUM_LABELS))
    scores = {
        name: skill * ease * np.eye(NUM_LABELS)[labels] + 0.6 * common + 0.8 * rng.normal(size=common.shape)
        for name, skill in SKILL.items()
    }
    return labels, {name: (np.round(4096 * values) / 4096).astype(np.float32) for name, values in scores.items()}


SPLITS = make_split(0), make_split(1)


def search(change: Callable[[Split], Split] = lambda split: split, gmacs: Mapping[str, float] = GMACS,
           change_report: Callable[[Split], Split] | None = None, **settings: Any) -> SearchResult:  # fmt: skip
    """Search the first split and report on the second, both changed in the same way unless the report has its own."""
    parts = change(SPLITS[0]), (change_report or change)(SPLITS[1])
    table, report = (PredictionTable.from_arrays(labels, models, gmacs) for labels, models in parts)
    arguments = {"population": 4, "generations": 1, "baselines": False, "device": "cpu"} | settings
    return search_predictions(table, SearchArguments(**arguments), report)


def with_model(make: Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]) -> Callable[[Split], Split]:
    """A change that adds a model "new"."""

    def change(split: Split) -> Split:
        labels, models = split
        return labels, {**models, "new": make(labels, models)}

    return change


def default(result: SearchResult):
    return result.front.find(result.evaluation.default)


def curve(result: SearchResult, at: np.ndarray, kind: str = "report") -> np.ndarray:
    """Accuracy of the best point, as the search knew it, within each budget."""
    points = [result.front.choose(gmacs=budget) for budget in at.tolist()]
    return np.array([getattr(point, kind).accuracy for point in points])


BUDGETS = np.array([1.5, 2.5, 4.0, 6.0, 8.0, 10.0, 14.0])


@pytest.fixture(scope="module")
def base() -> SearchResult:
    result = search()
    assert len(result.front) > 20
    assert min(default(result).report.expert_shares[1:]) > 0.05
    return result


# Exactly the same


def test_the_order_in_which_experts_are_given_does_not_matter(base):
    def reverse(split: Split) -> Split:
        return split[0], dict(reversed(split[1].items()))

    again = search(reverse, dict(reversed(GMACS.items())))
    assert again.front.to_list() == base.front.to_list()
    assert again.evaluation.to_dict() == base.evaluation.to_dict()


def test_names_do_not_matter(base):
    """Not even where they are in another order than the costs."""
    other = {"small": "z", "medium": "y", "large": "x"}

    def rename(split: Split) -> Split:
        return split[0], {other[name]: values for name, values in split[1].items()}

    again = search(rename, {other[name]: cost for name, cost in GMACS.items()})
    assert again.front.to_list() == base.front.to_list()


def test_what_softmax_does_not_see_does_not_matter(base):
    """Adding a number to all scores of an image."""
    again = search(lambda split: (split[0], {name: values + 3 for name, values in split[1].items()}))
    assert [p.select.accuracy for p in again.front] == pytest.approx(
        [p.select.accuracy for p in base.front], abs=NOISE
    )
    np.testing.assert_allclose(curve(again, BUDGETS), curve(base, BUDGETS), atol=NOISE / 4)


@pytest.mark.parametrize("times", [2, 3])
def test_report_images_that_occur_several_times_change_no_figure(base, times):
    def repeat(split: Split) -> Split:
        labels, models = split
        return np.tile(labels, times), {name: np.tile(values, (times, 1)) for name, values in models.items()}

    again = search(change_report=repeat)
    for ours, theirs in zip(again.front, base.front, strict=True):
        assert ours.select == theirs.select
        assert ours.report.samples == times * theirs.report.samples
        assert ours.report.accuracy == pytest.approx(theirs.report.accuracy, abs=1e-12)
        assert ours.report.gmacs == pytest.approx(theirs.report.gmacs, rel=1e-12)
        assert ours.report.expert_shares == pytest.approx(theirs.report.expert_shares, abs=1e-6)
    assert again.evaluation.default == base.evaluation.default


def test_the_order_of_report_images_does_not_matter(base):
    order = np.random.default_rng(0).permutation(COUNT)

    def shuffle(split: Split) -> Split:
        return split[0][order], {name: values[order] for name, values in split[1].items()}

    again = search(change_report=shuffle)
    for ours, theirs in zip(again.front, base.front, strict=True):
        assert ours.select == theirs.select
        assert ours.report.accuracy == theirs.report.accuracy
        assert ours.report.gmacs == pytest.approx(theirs.report.gmacs, rel=1e-12)


def test_a_unit_of_cost_changes_no_choice(base):
    """Heads cost the same as before, a millionth of the rest."""
    again = search(gmacs={name: 8 * cost for name, cost in GMACS.items()})
    ours, theirs = default(again), default(base)
    assert ours.members == theirs.members
    assert ours.select.accuracy == pytest.approx(theirs.select.accuracy, rel=1e-8)
    assert ours.report.gmacs == pytest.approx(8 * theirs.report.gmacs, rel=1e-5)
    np.testing.assert_array_equal(curve(again, 8 * BUDGETS), curve(base, BUDGETS))


# Nearly the same: folds are dealt out by label and place


def test_other_labels_for_the_same_classes_change_nothing_much(base):
    order = np.array([3, 0, 4, 1, 2])

    def relabel(split: Split) -> Split:
        return np.argsort(order)[split[0]], {name: values[:, order] for name, values in split[1].items()}

    again = search(relabel)
    assert again.evaluation.experts == base.evaluation.experts
    # The smallest budgets are the noisiest: among them lies the steepest part of the curve.
    np.testing.assert_allclose(curve(again, BUDGETS), curve(base, BUDGETS), atol=1.5 * NOISE)
    np.testing.assert_allclose(curve(again, BUDGETS)[1:], curve(base, BUDGETS)[1:], atol=NOISE)
    assert default(again).report.accuracy == pytest.approx(default(base).report.accuracy, abs=NOISE)


def test_search_images_that_occur_twice_change_nothing_much(base):
    """Twins come into different folds, which must not make estimates any rosier."""

    def repeat(split: Split) -> Split:
        labels, models = split
        return np.tile(labels, 2), {name: np.tile(values, (2, 1)) for name, values in models.items()}

    again = search(repeat, change_report=lambda split: split)
    np.testing.assert_allclose(curve(again, BUDGETS), curve(base, BUDGETS), atol=NOISE)
    np.testing.assert_allclose(curve(again, BUDGETS, "select"), curve(base, BUDGETS, "select"), atol=NOISE)
    assert default(again).report.accuracy == pytest.approx(default(base).report.accuracy, abs=NOISE)


def test_an_expert_that_nobody_needs_changes_nothing_much(base):
    """One that a cheaper one clearly beats."""

    def worse(labels: np.ndarray, models: dict[str, np.ndarray]) -> np.ndarray:
        noise = np.random.default_rng(len(labels) + labels[0]).normal(size=(len(labels), NUM_LABELS))
        return (0.7 * np.eye(NUM_LABELS)[labels] + noise).astype(np.float32)

    again = search(with_model(worse), GMACS | {"new": 5.0})
    assert max(point.report.expert_shares[2] for point in again.front if len(point.members) > 1) == 0
    np.testing.assert_allclose(curve(again, BUDGETS), curve(base, BUDGETS), atol=NOISE)


@pytest.mark.nightly
def test_a_twin_of_an_expert_helps_nobody(base):
    again = search(with_model(lambda labels, models: models["medium"]), GMACS | {"new": GMACS["medium"]})
    np.testing.assert_allclose(curve(again, BUDGETS), curve(base, BUDGETS), atol=NOISE)


# Experts of known worth


def perfect(labels: np.ndarray, models: dict[str, np.ndarray]) -> np.ndarray:
    return (8 * np.eye(NUM_LABELS)[labels]).astype(np.float32)


@pytest.mark.parametrize("settings", [{}, {"recipe": "paper", "epochs": 3}, {"recipe": "both", "epochs": 3}], ids=str)
def test_a_free_perfect_expert_is_always_chosen(settings):
    result = search(with_model(perfect), GMACS | {"new": FREE}, **settings)
    for point in result.front:
        assert point.report.expert_shares[0] == 1
        assert point.report.accuracy == point.select.accuracy == 1
    assert default(result).report.gmacs < 1e-5


@pytest.mark.nightly
def test_a_perfect_expert_of_any_cost_is_the_most_accurate_point():
    result = search(with_model(perfect), GMACS | {"new": 30.0})
    best = result.front.find("most-accurate")
    assert best.report.accuracy > result.evaluation.experts[-2].accuracy
    assert best.select.out_of_fold == 1 or best.select.accuracy == 1
    assert best.select.accuracy > 0.995, "images that are left out come close to it"
    assert best.report.gmacs <= sum(GMACS.values()) + 30 + 1e-5


def coin_flip(labels: np.ndarray, models: dict[str, np.ndarray]) -> np.ndarray:
    """Labels drawn by chance, as surely as can be."""
    drawn = np.random.default_rng(len(labels) + int(labels[:9].sum())).integers(0, NUM_LABELS, len(labels))
    return (8 * np.eye(NUM_LABELS)[drawn]).astype(np.float32)


def test_an_expert_that_flips_coins_is_refused_by_its_name():
    with pytest.raises(PertinenceError, match="expert 'new' is right on .* no better than chance"):
        search(with_model(coin_flip), GMACS | {"new": 2.0})


@pytest.mark.parametrize("cost", [2.0, pytest.param(5.0, marks=pytest.mark.nightly)])
def test_where_no_labels_are_known_coin_flips_help_nobody(cost):
    """They are then not refused, as nobody is known to be right; but no chain has them."""
    without = search(labels="agree")
    result = search(with_model(coin_flip), GMACS | {"new": cost}, labels="agree")
    coin = 1 if cost < GMACS["medium"] else 2
    assert not [point for point in result.front if coin in point.members]
    np.testing.assert_allclose(curve(result, BUDGETS), curve(without, BUDGETS), atol=NOISE)


def test_a_free_coin_flip_helps_nobody():
    """It costs nothing to ask, and still nothing is to be learned from it."""
    without = search(labels="agree")
    result = search(with_model(coin_flip), GMACS | {"new": FREE}, labels="agree")
    assert all(curve(result, BUDGETS) <= curve(without, BUDGETS) + NOISE)
    assert default(result).report.accuracy <= default(without).report.accuracy + NOISE
    assert default(result).report.expert_shares[0] < NOISE


def test_an_oracle_is_an_upper_bound_for_every_point_that_answers_alone():
    result = search(mixing=False)
    for point in result.front:
        assert point.report.accuracy <= result.evaluation.oracle.accuracy
