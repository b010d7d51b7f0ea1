"""The steps of a search: load, price, predict, split, compose; `front_search` has fit and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import Accelerator
from transformers.utils import logging

from ..data.dataset import LabelledImages
from ..data.splits import stratified_split
from ..experts.expert import Expert, load_expert
from ..experts.pool import load_pool
from ..experts.reference import ExpertReference
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..predictions.predict import predict
from ..predictions.predictions import Predictions
from ..utils.errors import PertinenceError
from .arguments import SearchArguments
from .front_search import FoundFront
from .recipes.registry import RECIPES, recipe_names


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class SearchPool:
    """The experts of a search.

    Attributes:
        experts: experts by rising cost, in the unit of the objective.
        stem: a separate stem that the first decision reads, or None.
        objective: the unit of cost that is minimised.
        smaller: for some experts, by pool index, the index of their variant with a smaller input.
    """

    experts: list[Expert]
    stem: Expert | None
    objective: str
    smaller: Mapping[int, int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [expert.entry.name for expert in self.experts]


def load(references: Sequence[Any], args: SearchArguments, label_map: str | None = None) -> SearchPool:
    """Load the experts and a separate stem; raises `PertinenceError` if they do not fit together.

    Args:
        references: see `load_pool`.
        args: settings.
        label_map: "by_name": the pool has the labels that all experts share.
    """
    experts = load_pool(references, args.load_options, args.preprocessing, label_map)
    return SearchPool(experts, None if args.stem is None else load_stem(args.stem, experts, args), args.cost)


def load_stem(reference: Any, pool: Sequence[Expert], args: SearchArguments) -> Expert:
    """Load a separate stem; an expert of the pool is refused, as its cost would count twice."""
    stem = load_expert(ExpertReference.parse(reference), args.load_options, args.preprocessing, is_stem=True)
    for expert in pool:
        if expert.find_revision() == stem.find_revision() and expert.entry.transform == stem.entry.transform:
            raise PertinenceError(
                f"the stem {stem.entry.name!r} is an expert of the pool: leave the stem out (it is the "
                "cheapest expert then), or choose another network"
            )
    if stem.entry.name in {expert.entry.name for expert in pool}:
        return stem.with_entry(stem.entry.replace(name=f"{stem.entry.name} (stem)"))
    return stem


def price(pool: SearchPool, measured: Callable[[Sequence[Expert]], list[Expert]]) -> SearchPool:
    """The pool by rising cost, with the minimised cost in each entry.

    Args:
        pool: loaded experts.
        measured: returns experts with that cost in their entries.
    """
    experts = measured([*pool.experts, *([] if pool.stem is None else [pool.stem])])
    stem = None if pool.stem is None else experts.pop()
    by_cost = sorted(experts, key=lambda expert: expert.entry.costs[pool.objective])
    return replace(pool, experts=by_cost, stem=stem)


def merged(pool: SearchPool, variants: Mapping[str, Expert]) -> SearchPool:
    """A pool with variants of some of its experts (by their names), by rising cost."""
    *others, largest = pool.experts
    # The largest stays last, even if a variant costs as much.
    joined = sorted([*variants.values(), *others], key=lambda expert: expert.entry.costs[pool.objective]) + [largest]
    smaller = {
        joined.index(expert): joined.index(variants[expert.entry.name])
        for expert in pool.experts
        if expert.entry.name in variants
    }
    return replace(pool, experts=joined, smaller=smaller)


def predict_split(
    pool: SearchPool, images: LabelledImages, accelerator: Accelerator, args: SearchArguments
) -> Predictions:
    """Predictions of every expert for a split whose labels are those of the pool; a search runs experts over images
    only here."""
    reading = {
        expert
        for name in recipe_names(args.recipe)
        for expert in RECIPES.get(name).load().features_of(args.of_recipe(name))
    }
    predictions = predict(
        pool.experts,
        images,
        accelerator,
        stem=pool.stem,
        features_of=sorted(reading),
        objective=pool.objective,
        **args.predict_options,
    )
    return predictions.agreeing() if args.labels == "agree" else predictions


def hold_out(predictions: Predictions, args: SearchArguments) -> tuple[Predictions, Predictions]:
    """Split predictions into those for search images and those for report images."""
    kept, held_out = stratified_split(predictions.targets, args.report_fraction, args.seed, predictions.copies)
    return predictions.subset(kept), predictions.subset(held_out)


def say_cached(parts: Sequence[Predictions], num_experts: int) -> None:
    """Say how many predictions of an earlier run are used, if any."""
    cached = sum(part.cached * len(part.labels) for part in parts)
    total = sum(num_experts * len(part.labels) for part in parts)
    if cached:
        logger.warning(f"{cached} of {total} predictions are taken from the cache.")


def say_held_out(search: Predictions, report: Predictions) -> None:
    logger.warning(
        f"No report images given: {len(report)} of {len(search) + len(report)} search images are held out for the "
        "report."
    )


def compose(pool: SearchPool, found: FoundFront) -> PertinenceForImageClassification:
    """Make the model from the experts, with their figures, and the front."""
    evaluation = found.evaluation
    experts = [
        expert.with_entry(expert.entry.replace(select=select.to_dict(), report=measured.to_dict()))
        for expert, select, measured in zip(pool.experts, found.select_experts, evaluation.experts, strict=True)
    ]
    names = [point.name for point in evaluation.front]
    answers = dict(zip(names, evaluation.series.answers, strict=True))
    return PertinenceForImageClassification.compose(
        experts,
        evaluation.front,
        found.heads,
        evaluation.default,
        pool.stem,
        answers,
        evaluation.reference,
        found.temperature,
    )
