"""`register_recipe`: recipes from outside the package, whose settings must not collide with those of a search."""

from __future__ import annotations

import re
from dataclasses import dataclass, is_dataclass

from ..utils.errors import PertinenceError, shown
from ..utils.settings import settings_of
from .arguments import reserved_names
from .recipes.registry import COMPOSITIONS, RECIPES, RegisteredRecipe, registered_recipes


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
    taken = dict.fromkeys(reserved_names(), "every search")
    for name, recipe in registered_recipes().items():
        if name != but_of:
            taken |= {setting.name: f"the recipe {name!r}" for setting in settings_of(recipe.arguments)}
    return taken
