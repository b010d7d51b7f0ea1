"""From predictions to a front: runs the recipes, names the points, tunes the baselines, measures everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.utils import logging

from ..evaluation.baselines import Archive, Candidate
from ..evaluation.outcomes import check_better_than_chance, evaluate_experts, leak_warnings
from ..evaluation.report import Evaluation, evaluate_front
from ..predictions.predict import Predictions
from ..routing.front import BEST_BELOW_LARGEST, CHEAPEST_LOSSLESS, FASTEST, MOST_ACCURATE, Front, OperatingPoint
from ..routing.heads import Head
from ..routing.metrics import ACCURACY, Figures
from ..utils.distributed import one_thread
from .arguments import SearchArguments
from .evolution import evolve
from .recipes.base import Recipe, make_recipes, static_candidates
from .recipes.chains import MAX_MEMBERS
from .recipes.thresholds import ThresholdRecipe


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class FoundFront:
    """What a search over predictions found.

    Attributes:
        evaluation: the front, measured on the report images.
        heads: of each operating point by its name.
        baselines: candidates by name, and which of them the default rule chooses.
        select_experts: figures of the experts on the search images.
        evaluated: every genome and its objectives.
        hypervolumes: of the archive after each generation, by recipe.
        images: how many images did what, and rows of those that could not be decoded.
    """

    evaluation: Evaluation
    heads: dict[str, tuple[Head, ...]]
    baselines: dict[str, tuple[list[Candidate], int]]
    select_experts: tuple[Figures, ...]
    evaluated: list[dict[str, Any]]
    hypervolumes: dict[str, list[float]]
    images: dict[str, Any]


@one_thread()
def search_front(
    names: Sequence[str],
    search: Predictions,
    report: Predictions,
    args: SearchArguments,
    accelerator: Accelerator,
    state_dir: Path | None = None,
    smaller: Mapping[int, int] | None = None,
) -> FoundFront:
    """Search dispatchers on predictions.

    Args:
        names: of the experts, by rising cost.
        search, report: predictions of the search images and of the report images.
        args: settings.
        accelerator: device and processes.
        state_dir: folder for the state of each evolution; what is there is continued.
        smaller: for some experts the index of the same one on a smaller image, an alternative to it.

    Raises:
        PertinenceError: an expert is no better than chance, or there are too few images.
    """
    skipped = {"search": search} | ({} if report.labels is search.labels else {"report": report})
    skipped = {kind: part for kind, part in skipped.items() if part.skipped}
    warnings = [f"{part.describe_skipped(f'{kind} images')}." for kind, part in skipped.items()]
    warnings += _doubts(names, search, report)
    mixing = args.mixing if args.mixing is not None else search.measure == ACCURACY
    recipes, judged, images = make_recipes(search, args, mixing, accelerator.device, smaller)
    statics = static_candidates(judged)
    reference = (statics[-1].cost, statics[0].accuracy)

    def run(recipe: Recipe, initial: Sequence[Candidate] = ()):
        return evolve(
            recipe,
            accelerator,
            population=args.population,
            generations=args.generations,
            seed=args.seed,
            reference=reference,
            initial=initial,
            state=state_dir and state_dir / f"{recipe.name}.safetensors",
        )

    archive, evaluated, hypervolumes = Archive(statics), [], {}
    for recipe in recipes:
        evolution = run(recipe, statics)
        archive.add(evolution.archive.candidates)
        evaluated += evolution.evaluated
        hypervolumes[recipe.name] = evolution.hypervolumes

    baselines: dict[str, list[Candidate]] = {}
    if args.baselines:
        baselines |= {f"{recipe.name} without search": _neutral(recipe, statics) for recipe in recipes}
        for count in _chain_lengths(len(names) - len(smaller or {})):
            tuned = run(ThresholdRecipe(search, count, mixing))
            baselines[f"max-softmax chain of {count}"] = tuned.archive.candidates
    chosen = {name: _thinned(candidates, statics[-1].cost, args.front_size) for name, candidates in baselines.items()}
    front, heads, default = build_front(archive.candidates, names, statics[-1].cost, args.front_size)
    select_experts = tuple(candidate.point.select for candidate in statics)
    evaluation = evaluate_front(front, heads, report, default, chosen, select_experts, warnings)
    return FoundFront(
        evaluation,
        heads,
        chosen,
        select_experts,
        evaluated,
        hypervolumes,
        {**images, "report": len(report)}
        | ({"skipped": {kind: list(part.skipped) for kind, part in skipped.items()}} if skipped else {}),
    )


def _doubts(names: Sequence[str], search: Predictions, report: Predictions) -> list[str]:
    """What speaks against the pool or its images, logged and returned; what surely forbids a search is raised."""
    warnings = []
    if search.measure == ACCURACY:
        static = [one.figures for one in evaluate_experts(search)]
        warnings += check_better_than_chance(names, static, search.num_labels)
    warnings += leak_warnings(names, search, report)
    if copies := len(report) - len(report.without_copies()):
        warnings.append(f"{copies} of {len(report)} report images are copies of others: intervals are too narrow.")
    for warning in warnings:
        logger.warning(warning)
    return warnings


def _chain_lengths(experts: int) -> list[int]:
    """Of the chains that are tuned for comparison, for a pool of so many experts."""
    return sorted({2, min(3, experts), min(experts, MAX_MEMBERS)})


def _neutral(recipe: Recipe, statics: Sequence[Candidate]) -> list[Candidate]:
    """What the heads of a recipe give without any search: its neutral genomes alone."""
    archive = Archive(statics)
    for individual in recipe.evaluate(recipe.space.neutral):
        entering = archive.improvements(individual.costs, individual.accuracy)
        archive.add([individual.candidate(index) for index in entering])
    return archive.candidates


def build_front(
    candidates: Sequence[Candidate], expert_names: Sequence[str], largest_cost: float, size: int
) -> tuple[Front, dict[str, tuple[Head, ...]], str]:
    """Name candidates that do not dominate each other (by rising cost), and keep at most `size` of them.

    Returns:
        The front with its `select` figures, the heads of each point by name, and the name of the default point.
    """
    is_lossless = default_point(candidates, largest_cost)[1]
    candidates, default = _thinned(candidates, largest_cost, size)
    names = [f"point-{position:02d}" for position in range(len(candidates))]
    names[0], names[-1] = FASTEST, MOST_ACCURATE
    names[default] = CHEAPEST_LOSSLESS if is_lossless else BEST_BELOW_LARGEST
    points: list[OperatingPoint] = [
        replace(candidate.point, name=name) for candidate, name in zip(candidates, names, strict=True)
    ]
    heads = {name: candidate.heads for candidate, name in zip(candidates, names, strict=True)}
    return Front(points, expert_names), heads, names[default]


def _thinned(candidates: Sequence[Candidate], largest_cost: float, size: int) -> tuple[list[Candidate], int]:
    """At most `size` of the candidates, and which of them is the default."""
    default = default_point(candidates, largest_cost)[0]
    kept = thin([c.cost for c in candidates], size, default)
    return [candidates[index] for index in kept], kept.index(default)


def default_point(candidates: Sequence[Candidate], largest_cost: float) -> tuple[int, bool]:
    """Index of the default among candidates that do not dominate each other (by rising cost), and whether it is
    lossless.

    Lossless: cheaper than the largest expert, and more accurate on the same images by at least half a paired standard
    error. Where no point is, the most accurate that is cheaper.
    """
    cheaper = [index for index, candidate in enumerate(candidates) if candidate.cost < largest_cost]
    for index in cheaper:
        difference, error = candidates[index].versus_largest
        if difference > 0 and difference >= error / 2:
            return index, True
    return max(cheaper, key=lambda index: candidates[index].accuracy, default=0), False


def thin(costs: Sequence[float], size: int, needed: int) -> list[int]:
    """At most `size` points of rising cost, the first, the last and `needed` among them.

    Again and again the point goes whose absence leaves the smallest gap, so that every budget is nearly spent.
    """
    kept = list(range(len(costs)))
    while len(kept) > max(size, 3):
        gaps = [
            costs[kept[i + 1]] / costs[kept[i - 1]] if kept[i] != needed else float("inf")
            for i in range(1, len(kept) - 1)
        ]
        del kept[1 + gaps.index(min(gaps))]
    return kept
