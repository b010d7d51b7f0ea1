"""From predictions to a front: fit the recipes and baselines, then report them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from ..data.splits import stratified_split
from ..evaluation.baselines import BaselineProblem, fit_baselines
from ..evaluation.candidates import Archive, Candidate, static_candidates
from ..evaluation.certainty import fit_temperature, with_certainty
from ..evaluation.class_loss import class_loss_bounds
from ..evaluation.outcomes import (
    Outcome,
    check_better_than_chance,
    evaluate_experts,
    leak_warnings,
    reference_warnings,
    route_predictions,
)
from ..evaluation.report import Evaluation, evaluate_front
from ..predictions.predictions import Predictions
from ..routing.front import Front
from ..routing.heads import Head
from ..routing.metrics import ACCURACY, Figures
from ..routing.unlike import SearchEntropies, entropies
from ..utils.distributed import one_thread
from ..utils.errors import PertinenceError
from . import baselines as _baselines  # registers the built-in ones  # noqa: F401
from .arguments import SearchArguments
from .evolution import Evolution, evolve
from .points import build_front, thinned
from .recipes.base import Problem, Recipe
from .recipes.registry import RECIPES, recipe_names


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class FittedFront:
    """The result of fitting to the search images, before the report images are used.

    Attributes:
        candidates: Pareto front of everything that was evaluated, by rising cost.
        statics: every expert alone, by rising cost.
        baselines: candidates by the name of their series.
        evaluated: every genome and its objectives.
        hypervolumes: hypervolume of the archive after each generation, by recipe that searches.
        images: number of images by purpose.
        recipes: what the record tells of each recipe, by its name.
        reference: pool index of the expert that others are compared with.
        judged: predictions for the search images that candidates were evaluated on.
    """

    candidates: list[Candidate]
    statics: list[Candidate]
    baselines: dict[str, list[Candidate]]
    evaluated: list[dict[str, Any]]
    hypervolumes: dict[str, list[float]]
    images: dict[str, Any]
    recipes: dict[str, Any]
    reference: int
    judged: Predictions


@dataclass(frozen=True)
class FoundFront:
    """The result of a search over predictions.

    Attributes:
        evaluation: the front, measured on the report images.
        heads: heads of each operating point, by its name.
        baselines: candidates by name, and the index of the one that the default rule chooses.
        select_experts: figures of the experts on the search images.
        evaluated: every genome and its objectives.
        hypervolumes: hypervolume of the archive after each generation, by recipe that searches.
        images: number of images by purpose, and rows of those that could not be decoded.
        recipes: what the record tells of each recipe, by its name.
        temperature: that of the reference expert, fitted to the search images.
    """

    evaluation: Evaluation
    heads: dict[str, tuple[Head, ...]]
    baselines: dict[str, tuple[list[Candidate], int]]
    select_experts: tuple[Figures, ...]
    evaluated: list[dict[str, Any]]
    hypervolumes: dict[str, list[float]]
    images: dict[str, Any]
    recipes: dict[str, Any]
    temperature: float


@one_thread()
def search_front(
    names: Sequence[str],
    search: Predictions,
    report: Predictions,
    args: SearchArguments,
    accelerator: Accelerator,
    state_dir: Path | None = None,
    smaller: Mapping[int, int] | None = None,
    label_names: Mapping[int, str] | None = None,
) -> FoundFront:
    """Search dispatchers on predictions.

    Args:
        names: names of the experts, by rising cost.
        search, report: predictions for the search images and for the report images.
        args: settings.
        accelerator: device and processes.
        state_dir: folder for the state of each evolution, which is continued if it exists.
        smaller: for some experts the index of their variant with a smaller input.
        label_names: names of the labels, for the report.

    Raises:
        PertinenceError: an expert is no better than chance, or there are too few images.
    """
    measured = evaluate_experts(search), evaluate_experts(report)
    warnings = _doubts(names, search, report, *measured)
    fitted = fit(search, measured[0], args, accelerator, state_dir, smaller or {})
    return report_front(names, fitted, search, report, args, warnings, label_names)


def fit(
    search: Predictions,
    experts: Sequence[Outcome],
    args: SearchArguments,
    accelerator: Accelerator,
    state_dir: Path | None,
    smaller: Mapping[int, int],
) -> FittedFront:
    """Run the recipes, and fit the baselines, on the search images.

    Args:
        search, args, accelerator, state_dir, smaller: see `search_front`.
        experts: outcome of each expert alone on the search images.
    """
    mixing = args.mixing if args.mixing is not None else search.measure == ACCURACY
    recipes, problem = prepare_recipes(search, args, mixing, accelerator.device, smaller, accelerator.is_main_process)
    judged = problem.judged
    statics = static_candidates(experts if judged is search else evaluate_experts(judged), search.reference)

    def run(recipe: Recipe, initial: Sequence[Candidate] = ()) -> Evolution:
        return evolve(
            recipe,
            accelerator,
            population=args.population,
            generations=args.generations,
            seed=args.seed,
            reference=(statics[-1].cost, statics[0].accuracy),
            initial=initial,
            state=state_dir and state_dir / f"{recipe.name}.safetensors",
        )

    if not any(recipe.space for recipe in recipes):
        _say_unused(args)
    evolutions = {recipe.name: run(recipe, statics) for recipe in recipes if recipe.space is not None}
    fronts = []
    for recipe in recipes:
        found = evolutions[recipe.name].archive.candidates if recipe.name in evolutions else statics
        fronts += broadcast_object_list([list(recipe.conclude(found))])  # processors may differ in the last bit
    compared = BaselineProblem(search, statics, recipes, problem)
    return FittedFront(
        fronts[0] if len(fronts) == 1 else Archive([*statics, *itertools.chain(*fronts)]).candidates,
        statics,
        fit_baselines(compared) if args.baselines else {},
        [entry for evolution in evolutions.values() for entry in evolution.evaluated],
        {name: evolution.hypervolumes for name, evolution in evolutions.items()},
        {key: count for recipe in recipes for key, count in recipe.images.items()},
        {recipe.name: dict(recipe.record) for recipe in recipes if recipe.record},
        search.reference,
        judged,
    )


def _say_unused(args: SearchArguments) -> None:
    """Say which settings of the genetic algorithm were given although there is nothing to search."""
    defaults = {one.name: one.default for one in args.settings()}
    given = [name for name in ("population", "generations") if getattr(args, name) != defaults[name]]
    if given:
        logger.warning(
            f"{' and '.join(given)} {'has' if len(given) == 1 else 'have'} no effect: the recipe {args.recipe} leaves "
            "nothing to a genetic algorithm."
        )


def prepare_recipes(
    search: Predictions,
    args: SearchArguments,
    mixing: bool,
    device: torch.device | str,
    smaller: Mapping[int, int] | None = None,
    shows_progress: bool = False,
) -> tuple[list[Recipe], Problem]:
    """The recipes that the settings name, and the problem that they share, which has no settings.

    If one of them divides the images into those that fit and those that choose, all are evaluated on the latter.
    """
    chosen = {name: RECIPES.get(name).load() for name in recipe_names(args.recipe)}
    settings = {name: args.of_recipe(name) for name in chosen}
    shares = [share for name, recipe in chosen.items() if (share := recipe.divides(settings[name])) is not None]
    if len(set(shares)) > 1:
        raise PertinenceError(
            f"the recipes {' and '.join(chosen)} divide the search images into different shares "
            f"({', '.join(map(str, shares))}): give them the same share, or search with one of them"
        )
    division = stratified_split(search.targets, shares[0], args.seed, search.copies) if shares else None
    make = partial(
        Problem,
        search,
        mixing=mixing,
        seed=args.seed,
        device=device,
        division=division,
        reference=search.reference,
        smaller=smaller or {},
        shows_progress=shows_progress,
    )
    recipes = [recipe.prepare(make(settings=settings[name])) for name, recipe in chosen.items()]
    return recipes, make()


def report_front(
    names: Sequence[str],
    fitted: FittedFront,
    search: Predictions,
    report: Predictions,
    args: SearchArguments,
    warnings: Sequence[str],
    label_names: Mapping[int, str] | None = None,
) -> FoundFront:
    """Name and thin the front by its estimates on the search images, then measure it and its baselines."""
    cost = fitted.statics[fitted.reference].cost
    baselines = {name: thinned(several, cost, args.front_size) for name, several in fitted.baselines.items()}
    front, heads, default = build_front(fitted.candidates, names, cost, args.front_size)
    front = _with_search_images(front, heads, fitted)
    front = Front([with_certainty(point, heads[point.name], search) for point in front], names)
    select_experts = tuple(candidate.figures for candidate in fitted.statics)
    temperature = fit_temperature(search, fitted.reference)
    evaluation = evaluate_front(
        front,
        heads,
        report,
        default,
        baselines,
        select_experts,
        fitted.reference,
        warnings,
        label_names,
        temperature=temperature,
    )
    skipped = {kind: list(part.skipped) for kind, part in _skipped(search, report).items()}
    return FoundFront(
        evaluation,
        heads,
        baselines,
        select_experts,
        fitted.evaluated,
        fitted.hypervolumes,
        {**fitted.images, "report": len(report)} | ({"skipped": skipped} if skipped else {}),
        fitted.recipes,
        temperature,
    )


def _with_search_images(front: Front, heads: Mapping[str, Sequence[Head]], fitted: FittedFront) -> Front:
    """The front, with what its points tell of the search images: a bound on what any class loses against the reference
    expert, and the entropies of answers."""
    judged, reference = fitted.judged, fitted.statics[fitted.reference]
    expected, classes = judged.correct()[:, fitted.reference].numpy(), judged.targets.numpy()
    points = []
    for point in front:
        right, spread = [], []
        for part, routing in route_predictions(point, heads[point.name], judged):
            right.append((routing.logits.argmax(1) == part.target_columns).numpy())
            spread.append(entropies(routing.logits, part.tail))
        figures = cast(Figures, point.select)  # which all candidates have
        if judged.measure == ACCURACY:  # else there are no classes
            mean_loss = reference.accuracy - figures.accuracy
            bounds = class_loss_bounds(np.concatenate(right), expected, classes, mean_loss)
            figures = replace(figures, class_loss=float(bounds.max()))
        points.append(replace(point, select=figures, entropies=SearchEntropies.of(np.concatenate(spread))))
    return Front(points, front.expert_names)


def _skipped(search: Predictions, report: Predictions) -> dict[str, Predictions]:
    """The predictions that lack images which cannot be decoded, by purpose of the images."""
    parts = {"search": search} | ({} if report.labels is search.labels else {"report": report})
    return {kind: part for kind, part in parts.items() if part.skipped}


def _doubts(
    names: Sequence[str],
    search: Predictions,
    report: Predictions,
    searched: Sequence[Outcome],
    reported: Sequence[Outcome],
) -> list[str]:
    """Warnings about the pool or its images; problems that certainly forbid a search are raised.

    Args:
        names, search, report: see `search_front`.
        searched, reported: outcome of each expert alone, on the search images and on the report images.
    """
    warnings = []
    if search.measure == ACCURACY:
        static = [one.figures for one in searched]
        warnings += check_better_than_chance(names, static, search.num_labels)
    warnings += leak_warnings(names, search, searched, reported)
    if search.measure == ACCURACY:
        warnings += reference_warnings(names, searched, search.reference)
    if copies := len(report) - len(report.without_copies()):
        warnings.append(f"{copies} of {len(report)} report images are copies of others: intervals are too narrow.")
    for warning in warnings:
        logger.warning(warning)
    # The user was warned of skipped images when they were read.
    skipped = [f"{part.describe_skipped(f'{kind} images')}." for kind, part in _skipped(search, report).items()]
    return skipped + warnings
