"""Settings of a search, defined once: flags, YAML and Python all use these dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, TypeVar

from ..data.arguments import DataArguments
from ..predictions.arguments import RuntimeArguments
from ..routing.costs import COSTS
from ..routing.names import MAX_POINTS
from ..runtime.transform import PREPROCESSING_MODES
from ..utils.settings import Setting, Settings, setting, settings_of
from .recipes.arguments import CascadeArguments, PaperArguments
from .recipes.registry import RECIPES, RecipeChoices, recipe_names, recipe_settings, registered_recipes


T = TypeVar("T")


def accepting_recipe_settings(cls: type[T]) -> type[T]:
    """Let a dataclass also take the settings of recipes from outside the package as keywords (`recipe_settings`)."""
    generated: Callable[..., None] = cls.__init__

    @wraps(generated)
    def init(self: T, *values: Any, recipe_settings: Mapping[str, Any] | None = None, **settings: Any) -> None:
        if "recipe" in settings:
            check_recipe(settings["recipe"])
        foreign = {name: settings.pop(name) for name in _foreign_settings() if name in settings}
        generated(self, *values, **settings, recipe_settings={**(recipe_settings or {}), **foreign})

    setattr(cls, "__init__", init)  # noqa: B010
    return cls


@accepting_recipe_settings
@dataclass
class SearchArguments(CascadeArguments, PaperArguments, RuntimeArguments):
    """How to search dispatchers.

    The settings of a registered recipe from outside the package are passed, and read, like all others.

    Raises:
        PertinenceError: a setting does not accept its value.
        TypeError: a setting does not exist.

    Examples:
        >>> SearchArguments(recipe="paper", epochs=3).epochs
        3
    """

    recipe: str = setting(
        "cascade",
        "cascade: a decision after every expert; paper: one decision, then one expert, which answers alone; both, or "
        "names joined by +: one front over all. --recipe NAME --help shows the settings of a recipe.",
        group="recipe",
        choices=RecipeChoices(),
    )
    population: int = setting(
        50, "Individuals per generation, of recipes with a genetic algorithm (paper).", group="search", least=2
    )
    generations: int = setting(50, "Generations of NSGA-II.", group="search", least=1)
    seed: int = setting(
        0, "Random seed of the splits, the genetic algorithm and the training.", group="search", least=0
    )
    labels: str = setting(
        "given",
        "given: those of the data set; agree: no labels, the predictions of the largest expert count as right.",
        group="data",
        choices=["given", "agree"],
    )
    cost: str = setting(
        "gmacs",
        "gmacs: operations; latency: milliseconds of each expert on this device, in batches of --batch-size; "
        "parameters: of the experts that run.",
        group="search",
        choices=COSTS.choices,
    )
    variants: str = setting(
        "none",
        "auto: try each expert on smaller images (and, if that changes the cost, in 8 bits), and start cascades with "
        "the variant that loses the least accuracy for the cost that it saves.",
        group="experts",
        choices=["none", "auto"],
    )
    report_fraction: float = setting(
        0.2,
        "Share of the images held out for the report, if no report images are given.",
        group="data",
        above=0,
        below=1,
    )
    mixing: bool | None = setting(
        None, "Answer with the mixture of the experts that have run; default: unless --labels agree.", group="search"
    )
    front_size: int = setting(
        200, "Largest number of operating points of the model.", group="search", least=3, most=MAX_POINTS
    )
    baselines: bool = setting(
        True, "Also fit what the front is compared with: tuned confidence cascades, ...", group="search"
    )
    preprocessing: str = setting(
        "exact",
        "exact: each expert's own preprocessing; fast: torchvision for all.",
        group="experts",
        choices=PREPROCESSING_MODES,
    )
    output_dir: str | None = setting(
        None, "New folder for the model, search_result.json and figures.", group="output", decides=False
    )
    resume: bool = setting(
        True, "Continue a search of the same settings in --output-dir.", group="output", decides=False
    )
    recipe_settings: dict[str, Any] = field(default_factory=dict, metadata={"is_no_setting": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_recipe(self.recipe)
        for name in registered_recipes():
            arguments = self.of_recipe(name)
            if name not in recipe_names(self.recipe) and hasattr(arguments, "check_unused"):
                arguments.check_unused()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and (foreign := _foreign_settings().get(name)) is not None:
            return self.recipe_settings.get(name, foreign.default)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def of_recipe(self, name: str) -> Any:
        """The settings of one recipe, as the dataclass that it is registered with.

        Raises:
            PertinenceError: the recipe does not exist, or a setting does not accept its value.
        """
        settings = recipe_settings(name)
        values = {one.name: getattr(self, one.name) for one in settings}
        for one in settings:
            one.check(values[one.name])
        return RECIPES.get(name).arguments(**values)

    @classmethod
    def settings(cls) -> tuple[Setting, ...]:
        """All settings in the order of the help, those of the recipes last."""
        recipes = [one for name in registered_recipes() for one in recipe_settings(name)]
        names = {one.name for one in recipes}
        return (*(one for one in settings_of(cls) if one.name not in names), *recipes)

    def used(self) -> tuple[Setting, ...]:
        """All settings, except those of recipes from outside the package that are not chosen."""
        chosen = (one for name in recipe_names(self.recipe) for one in recipe_settings(name))
        return tuple({one.name: one for one in (*settings_of(type(self)), *chosen)}.values())

    @property
    def search_settings(self) -> dict[str, Any]:
        """The settings that determine the result; the others only change where and how fast it is computed."""
        by_device = {"batch_size", "device"} if COSTS.get(self.cost).is_measured_here else set()
        return {
            one.name: getattr(self, one.name)
            for one in self.used()
            if one.metadata.get("decides", True) or one.name in by_device
        }


def check_recipe(choice: Any) -> None:
    """Check a choice of recipes, and import the installed packages that declare recipes not yet registered.

    Raises:
        PertinenceError: a recipe does not exist.
    """
    next(one for one in settings_of(SearchArguments) if one.name == "recipe").check(choice)
    for name in recipe_names(choice):
        RECIPES.get(name)


def _foreign_settings() -> dict[str, Setting]:
    """The settings of recipes from outside the package, by name."""
    own = {one.name for one in fields(SearchArguments)}
    return {one.name: one for name in registered_recipes() for one in recipe_settings(name) if one.name not in own}


@dataclass
class SearchInputs(Settings):
    """The input of a search, experts and images or a table of predictions, and the destination of its result."""

    experts: list[str | dict[str, Any]] | None = setting(
        None, "Hub ids, id@revision or local folders; at least two.", group="experts", metavar="EXPERT", extends=True
    )
    report_split: str | None = setting(
        None, "Split for the report; default: a part of --split is held out first.", group="data"
    )
    report_dataset: str | None = setting(None, "Data set for the report; default: --dataset.", group="data")
    predictions: str | None = setting(
        None,
        "Table instead of experts and images: .parquet, .csv, .json or .npz with a column `label` and one column of "
        "scores or classes for each model.",
        group="data",
        metavar="FILE",
    )
    costs: str | None = setting(
        None, "JSON file of GMACs by model name, for --predictions.", group="data", metavar="FILE"
    )
    save_experts: bool = setting(False, "Copy the experts' own files into the output folder.", group="output")
    push_to_hub: str | None = setting(
        None, "Push the result to this model repository, as `pertinence push` does.", group="output", metavar="REPO"
    )
    private: bool = setting(False, "Make the repository private if it is created.", group="output")

    @property
    def has_report(self) -> bool:
        """Whether report images are given, rather than held out of the search images."""
        return self.report_split is not None or self.report_dataset is not None


def reserved_names() -> set[str]:
    """Names that settings of a recipe must not have: those of other settings and of attributes."""
    settings = (one.name for part in (DataArguments, SearchArguments, SearchInputs) for one in fields(part))
    return {"help", "config", "plugins", *settings, *dir(SearchArguments)}
