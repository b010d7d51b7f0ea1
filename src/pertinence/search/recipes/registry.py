"""The registry of recipes: settings and location of the code of each; it imports none of that code."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ...utils.errors import PertinenceError, shown
from ...utils.registry import Registry, import_plugin
from ...utils.settings import Setting, settings_of
from .arguments import CascadeArguments, PaperArguments


if TYPE_CHECKING:
    from .base import Recipe

ASKED = ("name", "features_of", "divides", "prepare", "evaluate", "conclude", "unsearched")
"""The attributes that a recipe class must have."""


@dataclass(frozen=True)
class RegisteredRecipe:
    """A registered recipe.

    Attributes:
        arguments: dataclass of the recipe's own settings.
        implementation: the class, or its location as "module:Class".
    """

    arguments: type
    implementation: type | str

    def load(self) -> type[Recipe]:
        """The class, which is imported when it is first needed.

        Raises:
            PertinenceError: it cannot be imported, or lacks an attribute.
        """
        if isinstance(self.implementation, str):
            module, _, name = self.implementation.partition(":")
            loaded: type = import_plugin(lambda: getattr(importlib.import_module(module), name), self.implementation)
        else:
            loaded = self.implementation
        if missing := [attribute for attribute in ASKED if not hasattr(loaded, attribute)]:
            raise PertinenceError(
                f"the recipe {shown(loaded.__name__)} has no {', '.join(missing)}: inherit from `Recipe`"
            )
        return cast("type[Recipe]", loaded)


CASCADE = RegisteredRecipe(CascadeArguments, "pertinence.search.recipes.cascade:CascadeRecipe")
PAPER = RegisteredRecipe(PaperArguments, "pertinence.search.recipes.paper:PaperRecipe")
RECIPES: Registry[RegisteredRecipe] = Registry(
    "recipe", {"cascade": f"{__name__}:CASCADE", "paper": f"{__name__}:PAPER"}
)
COMPOSITIONS = {"both": ("paper", "cascade")}
"""Names for combinations of recipes, whose candidates make one front."""


def recipe_names(choice: str) -> tuple[str, ...]:
    """The recipes that a setting names: one, several as "cascade+mine", or those of a named combination."""
    parts = (COMPOSITIONS.get(part, (part,)) for part in choice.split("+"))
    return tuple(dict.fromkeys(name for names in parts for name in names))


class RecipeChoices:
    """The accepted values of the setting `recipe`: the names of all recipes, and combinations of them."""

    def __contains__(self, choice: Any) -> bool:
        return isinstance(choice, str) and all(name in RECIPES.choices for name in recipe_names(choice))

    def __iter__(self) -> Iterator[str]:
        return iter([*RECIPES.choices, *COMPOSITIONS])


def registered_recipes() -> dict[str, RegisteredRecipe]:
    """All registered recipes by name; nothing is imported."""
    found = {name: RECIPES.find(name) for name in RECIPES.names}
    return {name: recipe for name, recipe in found.items() if recipe is not None}


def recipe_settings(name: str) -> tuple[Setting, ...]:
    """The settings of one recipe."""
    return settings_of(RECIPES.get(name).arguments)
