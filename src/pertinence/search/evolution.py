"""NSGA-II over the genomes of a recipe: ask and tell on rank 0, evaluation on all ranks, resumable after any kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.problems.static import StaticProblem
from pymoo.version import __version__ as PYMOO
from safetensors import SafetensorError
from transformers.utils import logging

from .._version import __version__
from ..evaluation.candidates import Archive, Candidate, load_candidates, save_candidates
from ..evaluation.intervals import hypervolume
from ..utils.progress import progress_bar
from .recipes.base import Recipe


logger = logging.get_logger(__name__)

STATE_FORMAT = 2
"""Format 1 stored the population and the random state of the algorithm; format 2 stores all evaluations, which are
replayed."""


@dataclass
class Evolution:
    """The progress of a search.

    Attributes:
        archive: Pareto front of all evaluated candidates.
        evaluated: every genome with its objectives, in order.
        hypervolumes: hypervolume of the archive after each generation, see `intervals.hypervolume`.
    """

    archive: Archive
    evaluated: list[dict[str, Any]] = field(default_factory=list)
    hypervolumes: list[float] = field(default_factory=list)

    @property
    def generation(self) -> int:
        return len(self.hypervolumes)


def evolve(
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    population: int,
    generations: int,
    seed: int,
    reference: tuple[float, float],
    initial: Sequence[Candidate] = (),
    state: Path | None = None,
) -> Evolution:
    """Run NSGA-II with the paper's operators (SBX eta 20, p 0.9; polynomial mutation eta 25).

    Args:
        recipe: the recipe whose space is searched.
        accelerator: every process evaluates its part of each generation; all return the same result.
        population, generations, seed: parameters of NSGA-II.
        reference: cost and accuracy of the reference point of hypervolumes.
        initial: candidates that are in the archive from the start.
        state: file that is written after every generation; if it exists, the search continues from it.
    """
    start = partial(_algorithm, recipe, population, seed)
    main, stamp = accelerator.is_main_process, _stamp(accelerator)
    resumed = _resume(state, start, recipe.measure, stamp) if main and state is not None and state.is_file() else None
    algorithm, evolution = resumed or (start(), Evolution(Archive(initial)))
    (evolution,) = broadcast_object_list([evolution])  # other processes may not see this disk
    if resumed:
        logger.warning(
            f"The search ({recipe.name}) continues after generation {evolution.generation} of {generations}."
        )
    with progress_bar(generations, f"Search ({recipe.name})", "generation", main) as bar:
        bar.update(evolution.generation)
        while evolution.generation < generations:
            asked = algorithm.ask() if main else Population()
            (genomes,) = broadcast_object_list([asked.get("X")])
            results = _evaluate(recipe, genomes, evolution.archive, accelerator)
            evolution.archive.add(candidate for *_, candidates in results for candidate in candidates)
            evaluated = [
                {"recipe": recipe.name, "genome": genome, recipe.measure: accuracy, "cost": cost}
                for genome, (_, accuracy, cost, _) in zip(genomes.tolist(), results, strict=True)
            ]
            evolution.evaluated.extend(evaluated)
            known = evolution.archive.candidates
            evolution.hypervolumes.append(hypervolume([c.cost for c in known], [c.accuracy for c in known], reference))
            if main:
                _tell(algorithm, asked, evaluated, recipe.measure)
                if state is not None:
                    progress = {"evaluated": evolution.evaluated, "hypervolumes": evolution.hypervolumes}
                    save_candidates(state, {"archive": known}, {"stamp": stamp, **progress})
            bar.update(1)
    return evolution


def _algorithm(recipe: Recipe, population: int, seed: int) -> NSGA2:
    """NSGA-II before its first generation."""
    assert recipe.space is not None  # others are not searched
    algorithm = NSGA2(
        pop_size=population,
        sampling=_first_population(recipe, population, seed),
        crossover=SBX(prob=0.9, eta=20),
        mutation=PM(eta=25),
    )
    problem = Problem(n_var=len(recipe.space.lower), n_obj=2, xl=recipe.space.lower, xu=recipe.space.upper)
    return algorithm.setup(problem, seed=seed, verbose=False)


def _tell(algorithm: NSGA2, asked: Population, evaluated: Sequence[dict[str, Any]], measure: str) -> None:
    """Tell the algorithm the objectives of the genomes that it asked for."""
    objectives = np.array([[1 - entry[measure], entry["cost"]] for entry in evaluated])
    Evaluator().eval(StaticProblem(algorithm.problem, F=objectives), asked)
    algorithm.tell(infills=asked)


def _first_population(recipe: Recipe, population: int, seed: int) -> np.ndarray:
    """The recipe's seeds, as many as fit, and uniformly random genomes."""
    space = recipe.space
    assert space is not None
    random = np.random.default_rng(seed).uniform(space.lower, space.upper, (population, len(space.lower)))
    seeds = space.seeds[:population]
    return np.concatenate([seeds, random[len(seeds) :]])


def _evaluate(
    recipe: Recipe, genomes: np.ndarray, archive: Archive, accelerator: Accelerator
) -> list[tuple[int, float, float, list[Candidate]]]:
    """Evaluate genomes; the result is the same on all ranks.

    Returns:
        For each genome its index, its objectives, and the candidates that would enter the archive.
    """
    mine = np.array_split(np.arange(len(genomes)), accelerator.num_processes)[accelerator.process_index]
    results = []
    for index, candidate in zip(mine.tolist(), recipe.evaluate(genomes[mine]) if len(mine) else (), strict=True):
        entering = [candidate] if archive.is_improved_by(candidate) else []
        results.append((index, candidate.accuracy, candidate.cost, entering))
    return sorted(gather_object(results), key=lambda result: result[0])


def _stamp(accelerator: Accelerator) -> dict[str, Any]:
    """The versions and settings that a state must have been written with to be continued bit for bit."""
    return {
        "format": STATE_FORMAT,
        "pertinence": __version__,
        "torch": str(torch.__version__),
        "device": accelerator.device.type,
    }


def _resume(
    path: Path, start: Callable[[], NSGA2], measure: str, stamp: dict[str, Any]
) -> tuple[NSGA2, Evolution] | None:
    """Replay a stored search on a new algorithm; None if the file is damaged, or belongs to another search."""
    try:
        groups, state = load_candidates(path)
        wrote = state["stamp"]
        if wrote != stamp:
            changes = ", ".join(
                f"{key} {wrote.get(key)}, not {stamp[key]}" for key in stamp if wrote.get(key) != stamp[key]
            )
            logger.warning(f"The state of the search in {path} is of {changes}: starting again.")
            return None
        evolution = Evolution(Archive(groups["archive"]), state["evaluated"], state["hypervolumes"])
        return _replay(start(), evolution, measure), evolution
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(f"The state of the search in {path} is damaged or of another search ({error}): starting again.")
        return None


def _replay(algorithm: NSGA2, evolution: Evolution, measure: str) -> NSGA2:
    """Tell a new algorithm the stored objectives, generation by generation, which restores its state.

    Raises:
        ValueError: it asks for genomes other than those that were evaluated.
    """
    told = 0
    for generation in range(evolution.generation):
        asked = algorithm.ask()
        evaluated = evolution.evaluated[told : told + len(asked)]
        if [entry["genome"] for entry in evaluated] != asked.get("X").tolist():
            raise ValueError(f"generation {generation + 1} has genomes that pymoo {PYMOO} does not ask for")
        _tell(algorithm, asked, evaluated, measure)
        told += len(asked)
    if told != len(evolution.evaluated):
        raise ValueError(f"it has {len(evolution.evaluated)} genomes, expected {told}")
    return algorithm
