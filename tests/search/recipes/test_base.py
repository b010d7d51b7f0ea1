"""Recipes: what the search scores is what the model does, figure by figure, for every kind of dispatcher."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pertinence import SearchArguments
from pertinence.evaluation.outcomes import evaluate_point
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.front_search import prepare_recipes


GMACS = (1.0, 3.0, 10.0)
COUNT, LABELS, FEATURES = 500, 4, 6


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """Three experts of rising skill, who find the same images hard; the first has features that tell how hard."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, LABELS, (COUNT,), generator=generator)
    ease = torch.rand(COUNT, 1, generator=generator)
    experts = []
    for skill in (0.5, 0.8, 1.2):
        logits = 6 * skill * ease * torch.nn.functional.one_hot(labels, LABELS)
        features = torch.randn(COUNT, FEATURES, generator=generator) + 3 * ease
        experts.append(ExpertPredictions.keep(logits + torch.randn(COUNT, LABELS, generator=generator), features))
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs(GMACS))


def with_stem(predictions: Predictions) -> Predictions:
    stem = ExpertPredictions.keep(torch.zeros(COUNT, 2), predictions.experts[0].features)
    return replace(predictions, stem=stem, costs=replace(predictions.costs, stem={"gmacs": 0.2}))


def individuals(recipe, count: int = 6):
    space = recipe.space
    genomes = np.random.default_rng(0).uniform(space.lower, space.upper, (count, len(space.lower)))
    return list(recipe.evaluate(genomes))


def assert_same(candidate, predictions: Predictions) -> None:
    measured = evaluate_point(candidate.point, candidate.heads, predictions).figures
    select = candidate.point.select
    assert measured.accuracy == pytest.approx(select.accuracy)
    assert measured.gmacs == pytest.approx(select.gmacs)
    assert measured.cost == pytest.approx(select.cost)
    assert measured.expert_shares == pytest.approx(select.expert_shares)
    assert (measured.measure, measured.samples) == (select.measure, select.samples)


@pytest.mark.parametrize("latency", [False, True])
@pytest.mark.parametrize("has_stem", [False, True])
@pytest.mark.parametrize("evidence", ["features", "both"])
def test_paper_is_judged_as_the_model_decides(predictions, evidence, has_stem, latency):
    if has_stem:
        predictions = with_stem(predictions)
    if latency:
        predictions = predictions.with_cost("latency", [2.0, 5.0, 7.0, 0.1][: 3 + has_stem])
    arguments = SearchArguments(recipe="paper", evidence=evidence, epochs=3)
    (recipe,), problem = prepare_recipes(predictions, arguments, True, "cpu")
    judged = problem.judged
    for candidate in individuals(recipe):
        assert_same(candidate, judged)


@pytest.mark.parametrize("latency", [False, True])
@pytest.mark.parametrize("recipe", ["cascade", "both"])
def test_a_cascade_costs_what_the_model_will_spend(predictions, recipe, latency):
    """Its accuracy is an estimate by nested cross-validation; its cost is that of the heads that are saved."""
    if latency:
        predictions = predictions.with_cost("latency", [2.0, 5.0, 7.0])
    recipes, problem = prepare_recipes(predictions, SearchArguments(recipe=recipe, epochs=1), True, "cpu")
    judged = problem.judged
    for candidate in recipes[-1].conclude([])[::5]:
        if candidate.point.recipe == "static":
            continue
        measured = evaluate_point(candidate.point, candidate.heads, judged).figures
        select = candidate.point.select
        assert (select.estimate, select.samples) == (True, recipes[-1].images["select"])
        assert measured.gmacs == pytest.approx(select.gmacs, rel=2e-3)
        assert measured.cost == pytest.approx(select.cost, rel=2e-3)
        assert measured.accuracy == pytest.approx(select.accuracy, abs=0.05)
