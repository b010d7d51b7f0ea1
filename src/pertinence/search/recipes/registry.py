"""The registry of recipes: settings and location of the code of each; it imports none of that code."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, cast

from ...utils.errors import PertinenceError, shown
from ...utils.registry import Registry, import_plugin
from ...utils.settings import Setting, settings_of
from .arguments import CascadeArguments, PaperArguments


if TYPE_CHECKING:
    from .base import Recipe

ASKED = ("name", "features_of", "divides", "prepare", "evaluate")
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
            raise PertinenceError(f"the recipe {shown(loaded.__name__)} has no {', '.join(missing)}: see `Recipe`")
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


@dataclass
class NoArguments:
    """The settings of a recipe without settings of its own."""


def register_recipe(name: str, recipe: type | str, arguments: type = NoArguments) -> None:
    """Register a recipe, so that `SearchArguments(recipe=name)` and `--recipe name` choose it.

    Args:
        name: letters, digits, `-`, `_` and `.`.
        recipe: a class that implements the protocol `pertinence.search.recipes.base.Recipe`, or its location as
            "module:Class", so that it is imported when it is first used.
        arguments: a dataclass of the recipe's own settings: each a bool, int, float, str or a list of one of these,
            with a default. They become flags, keys of `--config` files and keywords of `SearchArguments`. The metadata
            of a field may have `help`, `choices`, the inclusive bounds `least` and `most` of a whole number, and the
            exclusive bounds `above` and `below` of any other number.

    Raises:
        PertinenceError: the name is invalid or taken, or a setting has no default, is of another type, or has the name
            of another setting.

    Examples:
        >>> from dataclasses import dataclass, field
        >>> @dataclass
        ... class TreeArguments:
        ...     depth: int = field(default=2, metadata={"help": "Of the trees.", "least": 1})
        >>> register_recipe("trees", "my_package.trees:TreeRecipe", TreeArguments)
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or name in COMPOSITIONS:
        raise PertinenceError(f"a recipe cannot be called {shown(name)}: choose a name of letters, digits, - and _")
    if not (isinstance(arguments, type) and is_dataclass(arguments)):
        raise PertinenceError(f"the settings of the recipe {name!r} must be a dataclass, got {shown(arguments)}")
    taken = _taken_names(but_of=name)
    for setting in settings_of(arguments):
        if setting.name in taken:
            raise PertinenceError(
                f"the setting {setting.name!r} of the recipe {name!r} has the name of one of {taken[setting.name]}: "
                "choose another"
            )
    RECIPES.register(name, RegisteredRecipe(arguments, recipe))


def _taken_names(but_of: str) -> dict[str, str]:
    """The names of existing settings, and what they belong to."""
    from ..arguments import reserved_names  # imported here, as it imports this module

    taken = dict.fromkeys(reserved_names(), "every search")
    for name, recipe in registered_recipes().items():
        if name != but_of:
            taken |= {setting.name: f"the recipe {name!r}" for setting in settings_of(recipe.arguments)}
    return taken
