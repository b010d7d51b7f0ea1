"""What every baseline keeps to: ours, and one from outside the package (examples/plugins/baseline.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pertinence import PertinenceError, SearchArguments, register_baseline
from pertinence.evaluation.baselines import BASELINES, BaselineProblem, fit_baselines
from pertinence.evaluation.candidates import load_candidates, save_candidates, static_candidates
from pertinence.evaluation.outcomes import evaluate_experts, evaluate_point
from pertinence.predictions.predict import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.front_search import prepare_recipes


NAMES = ("without search", "tuned cascades", "pairs at 90 %")
COUNT, LABELS = 300, 4


@pytest.fixture(scope="module", autouse=True)
def example(plug_in):
    return plug_in("baseline")


@pytest.fixture(scope="module", params=NAMES)
def baseline(request):
    return BASELINES.get(request.param)


@pytest.fixture(scope="module")
def problem() -> BaselineProblem:
    """Three experts of rising skill."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, LABELS, (COUNT,), generator=generator)
    experts = [
        ExpertPredictions.keep(
            skill * torch.nn.functional.one_hot(labels, LABELS) + 2 * torch.randn(COUNT, LABELS, generator=generator)
        )
        for skill in (2.0, 3.0, 5.0)
    ]
    predictions = Predictions.of_pool(experts, labels, PoolCosts.in_gmacs((1.0, 3.0, 10.0)))
    recipes, problem = prepare_recipes(predictions, SearchArguments(), True, "cpu")
    statics = static_candidates(evaluate_experts(predictions), predictions.reference)
    return BaselineProblem(predictions, statics, recipes, problem)


@pytest.fixture(scope="module")
def fitted(baseline, problem):
    return baseline.fit(problem)


def test_the_example_is_short(example):
    assert len(Path(example.__file__).read_text().splitlines()) <= 30


def test_each_series_is_a_front(fitted):
    assert fitted
    for series, candidates in fitted.items():
        assert series.isprintable()
        costs, accuracy = ([getattr(c, key) for c in candidates] for key in ("cost", "accuracy"))
        assert costs == sorted(set(costs)), "by rising cost"
        assert accuracy == sorted(accuracy), "none is better and cheaper than another"


def test_its_candidates_are_dispatchers_of_the_pool(fitted):
    for candidate in (candidate for several in fitted.values() for candidate in several):
        candidate.check(3, {})


def test_its_figures_are_what_the_model_does(fitted, problem):
    reference = evaluate_experts(problem.predictions)[problem.predictions.reference]
    for candidate in (candidate for several in fitted.values() for candidate in several):
        select = candidate.point.select
        outcome = evaluate_point(candidate.point, candidate.heads, problem.predictions)
        assert outcome.figures.costs == pytest.approx(select.costs, rel=2e-3 if select.estimate else 1e-6)
        assert outcome.figures.accuracy == pytest.approx(select.accuracy, abs=0.1 if select.estimate else 1e-9)
        if not select.estimate:
            assert candidate.versus_reference == pytest.approx(outcome.versus(reference))


def test_it_gives_the_same_again(baseline, fitted, problem):
    again = baseline.fit(problem)
    assert list(again) == list(fitted)
    for series, candidates in fitted.items():
        assert [c.point for c in again[series]] == [c.point for c in candidates]


def test_it_is_stored_with_a_model(fitted, tmp_path):
    save_candidates(tmp_path / "baselines", fitted)
    groups, _ = load_candidates(tmp_path / "baselines")
    for series, candidates in fitted.items():
        assert [c.point for c in groups[series]] == [c.point for c in candidates]
        for ours, theirs in zip(candidates, groups[series], strict=True):
            assert all(np.array_equal(a.weight, b.weight) for a, b in zip(ours.heads, theirs.heads, strict=True))


# From outside the package


def test_searched_saved_and_evaluated_in_a_fresh_process_without_it(record, evaluated):
    searched, again = (part["baselines"]["pairs at 90 %"] for part in (record, evaluated))
    assert searched["points"]
    assert {point["recipe"] for point in searched["points"]} == {"pair"}
    assert [point["accuracy"] for point in again["points"]] == [point["accuracy"] for point in searched["points"]]
    assert again["default"] == searched["default"]
    assert "pairs at 90 %" in evaluated["hypervolumes"]


def test_a_baseline_that_cannot_be_is_refused():
    with pytest.raises(PertinenceError, match="the baseline 'mine' has no fit: see `Baseline`"):
        register_baseline(type("Mine", (), {"name": "mine"})())
    with pytest.raises(PertinenceError, match="the name of the baseline must be one line of text, got None"):
        register_baseline(object())


@pytest.mark.parametrize("given", [{"nothing": []}, {"pairs at 90 %": None}], ids=["empty", "twice"])
def test_a_baseline_that_gives_nothing_is_refused(given, problem, monkeypatch):
    pairs = BASELINES.get("pairs at 90 %")
    several = {series: pairs.fit(problem)[series] if value is None else value for series, value in given.items()}
    mine = type("Mine", (), {"name": "mine", "fit": lambda self, problem: several})()
    monkeypatch.setattr(BASELINES, "_registered", {pairs.name: pairs, "mine": mine})
    with pytest.raises(PertinenceError, match="the baseline 'mine' gives no candidates, or a second series"):
        fit_baselines(problem)
