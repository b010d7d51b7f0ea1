"""The search: experts and labelled images in, one model with its front of operating points out."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import accelerate
import datasets
import numpy as np
import pymoo
import timm
import torch
import torchvision
import transformers
from accelerate import Accelerator
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.problems.static import StaticProblem
from transformers.utils import logging

from .accelerators import make_accelerator
from .arguments import SearchArguments
from .data import LabelledImages, stratified_split
from .dispatcher import Head
from .evaluation import (
    Outcome,
    check_better_than_chance,
    evaluate_experts,
    evaluate_front,
    evaluate_oracle,
    evaluate_point,
    non_dominated,
    paired_difference,
)
from .experts import Expert, load_pool, pool_labels
from .front import BEST_BELOW_LARGEST, CHEAPEST_LOSSLESS, FASTEST, MOST_ACCURATE, Front, as_plain
from .modeling_pertinence import PertinenceForImageClassification
from .predictions import Predictions, predict
from .progress import progress_bar
from .recipes import Candidate, PaperRecipe, static_candidates
from .result import SearchResult, check_output_dir


logger = logging.get_logger(__name__)


class DispatcherSearch:
    """Searches dispatchers for a pool of experts.

    Args:
        experts: references (Hub id, `id@revision`, folder, mapping, or loaded model), at least two.
        dataset: labelled images that no expert was trained on; a `datasets.Dataset` or `LabelledImages`.
        args: settings.
        report_dataset: images to report on; by default `args.report_fraction` of `dataset` is held out first.
        image_column, label_column: where the data sets have several.

    Example:
        >>> search = DispatcherSearch(["user/resnet8", "user/resnet56"], dataset, SearchArguments(seed=1))
        >>> result = search.run()
        >>> result.save("runs/cifar10")
    """

    def __init__(
        self,
        experts: Sequence[Any],
        dataset: datasets.Dataset | LabelledImages,
        args: SearchArguments | None = None,
        *,
        report_dataset: datasets.Dataset | LabelledImages | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        self.args = args or SearchArguments()
        self.references = list(experts)
        self.images, self.report_images = (
            LabelledImages(images, image_column, label_column) if isinstance(images, datasets.Dataset) else images
            for images in (dataset, report_dataset)
        )

    def run(self) -> SearchResult:
        """Load, predict, search, measure.

        Raises:
            PertinenceError: experts that do not fit together or the images, or an expert no better than chance.
        """
        start = time.perf_counter()
        accelerator = make_accelerator(self.args.device)
        pool = load_pool(self.references, self.args.load_options, self.args.preprocessing)
        settings = self._settings(pool)
        if self.args.output_dir is not None:
            check_output_dir(self.args.output_dir, settings)
        search, report = self._predict(pool, accelerator)
        names = [expert.entry["name"] for expert in pool]
        check_better_than_chance(names, [o.figures for o in evaluate_experts(search)], search.num_labels)
        predicted = time.perf_counter()

        recipe = PaperRecipe(search, self.args, accelerator.device)
        archive, evaluated = evolve(recipe, self.args, accelerator.is_main_process)
        searched = time.perf_counter()

        front, heads, default = build_front(archive + static_candidates(recipe.select), recipe.select, names)
        evaluation = evaluate_front(front, heads, report, default)
        select_experts = [outcome.figures for outcome in evaluate_experts(recipe.select)]
        for expert, select, measured in zip(pool, select_experts, evaluation.experts, strict=True):
            expert.entry["select"], expert.entry["report"] = as_plain(asdict(select)), as_plain(asdict(measured))
        model = PertinenceForImageClassification.compose(pool, evaluation.front, heads, default)
        return SearchResult(
            model,
            evaluation,
            {
                "settings": settings,
                "seed": self.args.seed,
                "versions": versions(),
                "images": {
                    "fit": len(recipe.fit),
                    "select": len(recipe.select),
                    "report": len(report),
                    "report_from": "report split" if self.report_images else "held out of the search split",
                },
                "evaluated": evaluated,
                "front": evaluation.front.to_list(),
                "baselines": {
                    "select": {"oracle": as_plain(asdict(evaluate_oracle(recipe.select).figures))},
                    "report": {key: evaluation.to_dict()[key] for key in ("experts", "oracle")},
                },
                "run": {
                    "seconds": {
                        "predictions": round(predicted - start, 3),
                        "search": round(searched - predicted, 3),
                        "total": round(time.perf_counter() - start, 3),
                    },
                    "host": {"platform": platform.platform(), "device": str(accelerator.device)},
                    "processes": accelerator.num_processes,
                    "batch_size": self.args.batch_size,
                },
            },
        )

    def _settings(self, pool: Sequence[Expert]) -> dict[str, Any]:
        images = {"search": self.images, "report": self.report_images}
        return {
            **self.args.search_settings,
            "experts": [{key: expert.entry[key] for key in ("name", "revision")} for expert in pool],
            "images": {name: value.fingerprint if value else None for name, value in images.items()},
        }

    def _predict(self, pool: Sequence[Expert], accelerator: Accelerator) -> tuple[Predictions, Predictions]:
        """Predictions of the search images and of the report images."""
        options = {key: getattr(self.args, key) for key in ("batch_size", "num_workers", "cache_dir")}
        parts = []
        for images in filter(None, (self.images, self.report_images)):
            images.check_labels(pool_labels(pool))
            parts.append(predict(pool, images, accelerator, features_of=[0], **options))
        if self.report_images is not None:
            return parts[0], parts[1]
        kept, held_out = stratified_split(parts[0].targets, self.args.report_fraction, self.args.seed)
        logger.warning(
            f"No report images given: {len(held_out)} of {len(parts[0])} search images are held out to report on."
        )
        return parts[0].subset(kept), parts[0].subset(held_out)


def evolve(
    recipe: PaperRecipe, args: SearchArguments, show_progress: bool = True
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """NSGA-II over a recipe's genomes, with the paper's operators (SBX eta 20, p 0.9; polynomial mutation eta 25).

    Returns:
        The candidates that no evaluated one dominates, and a record of all that were evaluated.
    """
    problem = Problem(n_var=len(recipe.space.lower), n_obj=2, xl=recipe.space.lower, xu=recipe.space.upper)
    algorithm = NSGA2(pop_size=args.population, crossover=SBX(prob=0.9, eta=20), mutation=PM(eta=25))
    algorithm.setup(problem, termination=("n_gen", args.generations), seed=args.seed, verbose=False)
    archive: list[Candidate] = []
    evaluated: list[dict[str, Any]] = []
    with progress_bar(args.generations, "Search", "generation", show_progress) as bar:
        while algorithm.has_next():
            population = algorithm.ask()
            genomes = population.get("X")
            candidates = recipe.evaluate(genomes)
            objectives = np.array([[1 - candidate.accuracy, candidate.gmacs] for candidate in candidates])
            Evaluator().eval(StaticProblem(problem, F=objectives), population)
            algorithm.tell(infills=population)
            archive.extend(candidates)
            archive = [archive[i] for i in non_dominated([c.gmacs for c in archive], [c.accuracy for c in archive])]
            evaluated.extend(
                {"recipe": recipe.name, "genome": genome, "accuracy": c.accuracy, "gmacs": c.gmacs}
                for genome, c in zip(genomes.tolist(), candidates, strict=True)
            )
            bar.update(1)
    return archive, evaluated


def build_front(
    candidates: Sequence[Candidate], select: Predictions, expert_names: Sequence[str]
) -> tuple[Front, dict[str, Sequence[Head]], str]:
    """Name the candidates that nothing dominates, by figures of the code that the model itself runs.

    Returns:
        The front with its `select` figures, the heads of each point by name, and the name of the default point.
    """
    outcomes = [evaluate_point(candidate.point, candidate.heads, select) for candidate in candidates]
    figures = [outcome.figures for outcome in outcomes]
    chosen = non_dominated([f.gmacs for f in figures], [f.accuracy for f in figures])
    default, is_lossless = default_point([outcomes[i] for i in chosen], evaluate_experts(select)[-1])
    names = [f"point-{position:02d}" for position in range(len(chosen))]
    names[0], names[-1] = FASTEST, MOST_ACCURATE
    names[default] = CHEAPEST_LOSSLESS if is_lossless else BEST_BELOW_LARGEST
    points = [
        replace(candidates[i].point, name=name, select=figures[i]) for i, name in zip(chosen, names, strict=True)
    ]
    heads = {name: candidates[i].heads for i, name in zip(chosen, names, strict=True)}
    return Front(points, expert_names), heads, names[default]


def default_point(outcomes: Sequence[Outcome], largest: Outcome) -> tuple[int, bool]:
    """Position of the default point among the outcomes of a front (rising cost), and whether it is lossless.

    Lossless: cheaper than the largest expert, and more accurate on the same images by at least half a paired standard
    error. Where no point is, the most accurate that is cheaper.
    """
    cheaper = [i for i, outcome in enumerate(outcomes) if outcome.figures.gmacs < largest.figures.gmacs]
    for index in cheaper:
        difference, error = paired_difference(outcomes[index].correct, largest.correct)
        if difference > 0 and difference >= error / 2:
            return index, True
    if not cheaper:
        return 0, False
    return max(cheaper, key=lambda i: outcomes[i].figures.accuracy), False


def versions() -> dict[str, str]:
    from . import __version__

    modules = (torch, torchvision, transformers, timm, datasets, accelerate, pymoo, np)
    return {"pertinence": __version__, "python": platform.python_version()} | {
        m.__name__: m.__version__ for m in modules
    }
