"""Recipes by name, and those that are registered from outside the package."""

from dataclasses import dataclass, field, make_dataclass

import pytest

from pertinence import PertinenceError, SearchArguments, register_recipe
from pertinence.search.recipes.arguments import CascadeArguments, PaperArguments
from pertinence.search.recipes.base import Recipe
from pertinence.search.recipes.registry import RECIPES, RecipeChoices, recipe_names


@dataclass
class TreeArguments:
    depth: int = field(default=2, metadata={"least": 1})


class TreeRecipe(Recipe):
    """What is never run here."""

    name = "trees"


@pytest.fixture(autouse=True)
def _registered(registered_recipes):
    pass


def test_the_recipes_of_the_package():
    assert RECIPES.get("cascade").arguments is CascadeArguments
    assert RECIPES.get("paper").arguments is PaperArguments
    assert {RECIPES.get(name).load().name for name in ("cascade", "paper")} == {"cascade", "paper"}
    assert list(RecipeChoices())[:2] == ["cascade", "paper"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("cascade", ("cascade",)),
        ("both", ("paper", "cascade")),
        ("cascade+paper", ("cascade", "paper")),
        ("cascade+both", ("cascade", "paper")),
    ],
)
def test_a_choice_names_one_recipe_or_several(choice, names):
    assert recipe_names(choice) == names
    assert choice in RecipeChoices()
    assert SearchArguments(recipe=choice).recipe == choice


@pytest.mark.parametrize("choice", ["", "+", "cascade+", "magic", "cascade+magic", None, 3, ["cascade"]])
def test_other_choices_are_refused(choice):
    assert choice not in RecipeChoices()
    with pytest.raises(PertinenceError, match="is not one of cascade, paper"):
        SearchArguments(recipe=choice)


@pytest.mark.parametrize("target", [TreeRecipe, f"{__name__}:TreeRecipe"], ids=["class", "text"])
def test_a_recipe_of_the_users_own(target):
    register_recipe("trees", target, TreeArguments)
    assert "trees" in RecipeChoices()
    assert "cascade+trees" in RecipeChoices()
    assert RECIPES.get("trees").arguments is TreeArguments
    if isinstance(target, type):
        assert RECIPES.get("trees").load() is TreeRecipe


def test_a_recipe_may_have_no_settings():
    register_recipe("trees", TreeRecipe)
    assert SearchArguments(recipe="trees").search_settings.keys() == SearchArguments().search_settings.keys()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("both", "cannot be called 'both'"),
        ("two words", "cannot be called 'two words'"),
        ("a+b", "cannot be called"),
        ("", "cannot be called ''"),
        (3, "cannot be called 3"),
        ("cascade", "is a part of pertinence"),
    ],
)
def test_names_that_are_taken_or_none(name, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        register_recipe(name, TreeRecipe)


@pytest.mark.parametrize(
    ("setting", "owner"),
    [
        ("epochs", "the recipe 'paper'"),
        ("folds", "the recipe 'cascade'"),
        ("seed", "every search"),
        ("dataset", "every search"),
        ("experts", "every search"),
        ("plugins", "every search"),
        ("load_options", "every search"),
        ("depth", "the recipe 'trees'"),
    ],
)
def test_settings_whose_names_are_taken(setting, owner):
    register_recipe("trees", TreeRecipe, TreeArguments)
    with pytest.raises(PertinenceError, match=f"{setting!r} of the recipe 'mine' has the name of one of {owner}"):
        register_recipe("mine", TreeRecipe, make_dataclass("Mine", [(setting, int, field(default=1))]))
    assert "mine" not in RecipeChoices()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (3, "must be a dataclass, got 3"),
        (dict, "must be a dataclass"),
        (make_dataclass("Mine", [("x", int)]), "'x' has no default"),
        (make_dataclass("Mine", [("x", set, field(default=None))]), "'x' is of a type that no flag gives"),
    ],
)
def test_settings_that_no_flag_can_give(arguments, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        register_recipe("mine", TreeRecipe, arguments)


def test_a_recipe_is_registered_anew():
    register_recipe("trees", TreeRecipe, TreeArguments)
    register_recipe("trees", TreeRecipe, make_dataclass("Other", [("depth", float, field(default=0.5))]))
    assert SearchArguments().depth == 0.5
