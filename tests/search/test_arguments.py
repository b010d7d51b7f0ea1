"""`SearchArguments`: the settings of every search and of every recipe in one object."""

import copy
import pickle
from dataclasses import dataclass, field, replace

import pytest

from pertinence import PertinenceError, SearchArguments, register_recipe
from pertinence.search.settings import resolved_settings


RECORDED = {
    "dtype": None, "recipe": "cascade", "population": 50, "generations": 50, "seed": 0, "labels": "given",
    "cost": "gmacs", "folds": 5, "mixing": None, "variants": "none", "evidence": "features", "epochs": 20,
    "learning_rate": 0.001, "head_batch_size": 256, "unsolved": "cheapest", "select_fraction": 0.4,
    "report_fraction": 0.2, "front_size": 200, "baselines": True, "preprocessing": "exact",
}  # fmt: skip
"""What the record of a search holds of its settings, since format 1."""


@dataclass
class TreeArguments:
    depth: int = field(default=2, metadata={"least": 1})


@pytest.fixture
def trees(registered_recipes) -> None:
    register_recipe("trees", object, TreeArguments)


def test_settings_that_are_recorded():
    assert SearchArguments().search_settings == RECORDED
    changed = SearchArguments(recipe="paper", epochs=3, folds=7, stem="user/stem", batch_size=8, output_dir="x")
    assert changed.search_settings == RECORDED | {"recipe": "paper", "epochs": 3, "folds": 7}
    timed = SearchArguments(cost="latency").search_settings
    assert timed == RECORDED | {"cost": "latency", "batch_size": 64, "device": None}


def test_settings_of_recipes_are_attributes():
    args = SearchArguments(recipe="paper", epochs=3, folds=6)
    assert (args.epochs, args.folds, args.mixing) == (3, 6, None)
    assert vars(args.of_recipe("cascade")) == {"folds": 6}
    assert args.of_recipe("paper").epochs == 3
    args.epochs = 4
    assert args.of_recipe("paper").epochs == 4


def test_settings_of_a_recipe_from_outside(trees):
    args = SearchArguments(recipe="cascade+trees", depth=3)
    assert args.depth == 3
    assert args.of_recipe("trees") == TreeArguments(3)
    assert args.search_settings == RECORDED | {"recipe": "cascade+trees", "depth": 3}
    assert resolved_settings(args)["depth"] == 3
    assert replace(args, depth=4).depth == 4
    assert replace(args, seed=1).depth == 3
    assert args == copy.deepcopy(args) == pickle.loads(pickle.dumps(args))
    assert args != replace(args, depth=4)
    assert "depth" not in SearchArguments().search_settings
    assert "depth" not in resolved_settings(SearchArguments())
    assert SearchArguments().depth == 2


def test_unknown_and_wrong_settings(trees):
    with pytest.raises(TypeError, match="colour"):
        SearchArguments(colour="red")
    with pytest.raises(AttributeError, match="colour"):
        _ = SearchArguments().colour
    for values, sentence in (
        ({"depth": 0}, "depth must be at least 1"),
        ({"recipe": "trees", "depth": "3"}, "depth must be at least 1, a whole number, got '3'"),
        ({"learning_rate": "fast"}, "a setting is of the wrong type: learning_rate must be a positive number"),
        ({"front_size": 10_001}, "front_size must be at most 10000"),
        ({"recipe": "bushes", "height": 3}, "recipe='bushes' is not one of cascade, paper, trees"),
        ({"recipe": "trees", "stem": "user/stem"}, "a separate stem has nothing to decide"),
    ):
        with pytest.raises(PertinenceError, match=sentence):
            SearchArguments(**values)
