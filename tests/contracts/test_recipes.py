"""What every recipe keeps to: ours, and one from outside the package (examples/plugins/recipe.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pertinence import PertinenceError, SearchArguments, register_recipe
from pertinence.evaluation.candidates import static_candidates
from pertinence.evaluation.outcomes import evaluate_experts, evaluate_point
from pertinence.predictions.predict import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.front_search import prepare_recipes, search_front
from pertinence.search.recipes.base import Recipe, Space
from pertinence.search.recipes.registry import RECIPES
from pertinence.utils.distributed import make_accelerator


RECIPE_NAMES = ("paper", "cascade", "margin")
COUNT, LABELS, FEATURES = 300, 4, 6


@pytest.fixture(scope="module", autouse=True)
def example(plug_in):
    return plug_in("recipe")


@pytest.fixture(scope="module", params=RECIPE_NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """Three experts of rising skill."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, LABELS, (COUNT,), generator=generator)
    experts = []
    for skill in (2.0, 3.0, 5.0):
        logits = skill * torch.nn.functional.one_hot(labels, LABELS)
        features = torch.randn(COUNT, FEATURES, generator=generator)
        experts.append(ExpertPredictions.keep(logits + 2 * torch.randn(COUNT, LABELS, generator=generator), features))
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs((1.0, 3.0, 10.0)).with_unit("latency", (2, 3, 4)))


def prepared(name: str, predictions: Predictions) -> tuple[Recipe, Predictions]:
    """The recipe, and the images that it is judged on."""
    (recipe,), problem = prepare_recipes(predictions, SearchArguments(recipe=name, epochs=2), True, "cpu")
    judged = problem.judged
    return recipe, judged


@pytest.fixture(scope="module")
def recipe(name, predictions):
    return prepared(name, predictions)[0]


@pytest.fixture(scope="module")
def judged(name, predictions):
    return prepared(name, predictions)[1]


@pytest.fixture(scope="module")
def space(recipe) -> Space:
    if recipe.space is None:
        pytest.skip("it has nothing to search")
    return recipe.space


@pytest.fixture(scope="module")
def genomes(space) -> np.ndarray:
    random = np.random.default_rng(0)
    drawn = random.uniform(space.lower, space.upper, (4, len(space.lower)))
    return np.concatenate([space.neutral[:1], drawn, [space.lower, space.upper]])


@pytest.fixture(scope="module")
def population(recipe, genomes):
    return list(recipe.evaluate(genomes))


def assert_same(ours, theirs) -> None:
    """Two candidates of the same genome, bit by bit."""
    assert (ours.point, ours.versus_reference) == (theirs.point, theirs.versus_reference)
    for a, b in zip(ours.heads, theirs.heads, strict=True):
        assert np.array_equal(a.weight, b.weight)
        assert np.array_equal(a.bias, b.bias)


def test_the_example_is_short(example):
    assert len(Path(example.__file__).read_text().splitlines()) <= 60


def test_it_says_what_it_is(name, recipe, predictions, judged):
    assert (recipe.name, recipe.measure) == (name, predictions.measure)
    assert all(isinstance(count, int) for count in recipe.images.values())
    settings = SearchArguments(recipe=name).of_recipe(name)
    assert set(recipe.features_of(settings)) <= {0, 1, 2}
    share = recipe.divides(settings)
    assert len(judged) == (COUNT if share is None else pytest.approx(share * COUNT, abs=1))


def test_genomes_that_it_proposes_lie_within_its_bounds(space):
    assert space.lower.shape == space.upper.shape
    assert (space.lower <= space.upper).all()
    assert len(space.neutral), "what it gives without a search is a baseline"
    for proposed in (space.seeds, space.neutral):
        assert proposed.shape[1:] == space.lower.shape
        assert ((space.lower <= proposed) & (proposed <= space.upper)).all()


def test_every_genome_becomes_a_candidate(population, genomes):
    assert len(population) == len(genomes)


def test_it_gives_the_same_again(name, predictions, population, genomes):
    again = prepared(name, predictions)[0].evaluate(genomes)
    for ours, theirs in zip(population, again, strict=True):
        assert_same(ours, theirs)


def test_a_candidate_does_not_depend_on_its_neighbours(recipe, population, genomes):
    for ours, genome in zip(population, genomes, strict=True):
        assert_same(ours, *recipe.evaluate(genome[None]))


def test_its_candidates_are_dispatchers_of_the_pool(name, population):
    for candidate in population:
        candidate.check(3, dict.fromkeys(range(3), FEATURES))
        assert candidate.point.recipe == name


def test_its_figures_are_what_the_model_does(population, judged):
    for candidate in population:
        assert_measured(candidate, judged)


def assert_measured(candidate, judged: Predictions) -> None:
    """The figures of a candidate are those of the model."""
    select = candidate.point.select
    assert select.objective == "latency"
    assert sum(select.expert_shares) == pytest.approx(1)
    measured = evaluate_point(candidate.point, candidate.heads, judged).figures
    # Of an estimate the accuracy is that of other heads, the cost that of these.
    assert measured.costs == pytest.approx(select.costs, rel=2e-3 if select.estimate else 1e-6)
    assert measured.accuracy == pytest.approx(select.accuracy, abs=0.1 if select.estimate else 1e-9)
    assert measured.samples == select.samples


@pytest.fixture(scope="module")
def statics(judged):
    return static_candidates(evaluate_experts(judged), judged.reference)


@pytest.fixture(scope="module", params=["conclude", "unsearched"])
def front(request, recipe, statics):
    """What the recipe gives after a search, and without one."""
    return list(getattr(recipe, request.param)(statics))


def test_its_fronts_are_dispatchers_of_the_pool(name, front):
    assert front
    for candidate in front:
        candidate.check(3, dict.fromkeys(range(3), FEATURES))
        assert candidate.point.recipe in (name, "thresholds", "static")
    costs, accuracy = ([getattr(one, key) for one in front] for key in ("cost", "accuracy"))
    assert costs == sorted(set(costs))
    assert accuracy == sorted(accuracy)


def test_its_fronts_do_what_they_state(front, judged):
    for candidate in front[::7]:
        assert_measured(candidate, judged)


class OnlyTheCheapest(Recipe):
    """Nothing to search, and no more than the protocol asks for."""

    name, space = "only-the-cheapest", None

    def __init__(self, measure):
        self.measure = measure

    @classmethod
    def prepare(cls, problem):
        return cls(problem.predictions.measure)

    def conclude(self, found):
        return found[:1]


def test_a_recipe_may_have_nothing_to_search(predictions, statics, registered_recipes):
    register_recipe("only-the-cheapest", OnlyTheCheapest)
    recipe, judged = prepared("only-the-cheapest", predictions)
    assert list(recipe.evaluate(np.empty((0, 0)))) == []
    assert [one.point.members for one in recipe.unsearched(statics)] == [(0,)]
    args = SearchArguments(recipe="only-the-cheapest", device="cpu")
    found = search_front("abc", predictions, predictions, args, make_accelerator("cpu"))
    assert [point.members for point in found.evaluation.front] == [(0,)]


# From outside the package


def test_searched_saved_and_recorded(record):
    assert record["settings"]["recipe"] == "paper+margin"
    assert record["settings"]["margin_steps"] == 10
    evaluated = [one for one in record["evaluated"] if one["recipe"] == "margin"]
    assert len(evaluated) == 6 * 2
    assert len(record["hypervolumes"]["margin"]) == 2
    assert "margin without search" in record["baselines"]


def test_its_points_are_saved_loaded_and_evaluated_without_it(record, evaluated):
    points = [point for point in record["front"] if point["recipe"] == "margin"]
    assert points
    again = {point["name"]: point for point in evaluated["front"]}
    for point in points:
        assert again[point["name"]]["accuracy"] == point["report"]["accuracy"]


def test_its_settings_are_obeyed(example, predictions):
    coarse = SearchArguments(recipe="margin", margin_steps=1)
    (recipe,), _ = prepare_recipes(predictions, coarse, True, "cpu")
    heads = [one.heads[0] for one in recipe.evaluate(np.array([[0, 0.3, 0.7], [0, 0.6, 0.2]]))]
    assert [head.bias[1].item() for head in heads] == [0.0, 1.0]
    with pytest.raises(PertinenceError, match="margin_steps must be at least 1"):
        SearchArguments(recipe="margin", margin_steps=0)


def test_a_class_that_is_no_recipe_is_refused():
    register_recipe("lacking", type("Lacking", (), {"name": "lacking", "prepare": None}))
    with pytest.raises(
        PertinenceError,
        match="the recipe 'Lacking' has no features_of, divides, evaluate, conclude, unsearched: inherit",
    ):
        RECIPES.get("lacking").load()


def test_a_recipe_that_is_nowhere_is_refused():
    register_recipe("nowhere", "no_such_module:Recipe")
    with pytest.raises(PertinenceError, match="the plugin no_such_module:Recipe cannot be imported"):
        RECIPES.get("nowhere").load()
