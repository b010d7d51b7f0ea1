"""Baselines: what a front must be compared with, fitted to the same search images, and stored beside the model.

The experts alone, random mixes of them and the oracle need no fit: every report has them (see `report`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from safetensors import SafetensorError

from ..hub.layout import BASELINES as FILE
from ..predictions.predictions import Predictions
from ..utils.downloads import find_file
from ..utils.errors import PertinenceError
from ..utils.parsing import parse_json
from ..utils.registry import Registry
from ..utils.validation import is_whole
from .candidates import Candidate, load_candidates


@dataclass(frozen=True)
class BaselineProblem:
    """What baselines are fitted to.

    Attributes:
        predictions: of all search images.
        statics: every expert alone, by rising cost, on the images that the search judges on.
        recipes: those of the search, prepared (see `search.recipes.base.Recipe`).
        mixing: whether answers mix the experts that have run.
        num_whole: experts of the pool, without smaller variants of others.
        evolve: tunes a recipe by the genetic algorithm of the search, and gives what nothing evaluated dominates.
    """

    predictions: Predictions
    statics: Sequence[Candidate]
    recipes: Sequence[Any]
    mixing: bool
    num_whole: int
    evolve: Callable[[Any], list[Candidate]]


class Baseline(Protocol):
    """A baseline.

    Attributes:
        name: by which it is registered.
    """

    name: str

    def fit(self, problem: BaselineProblem) -> Mapping[str, Sequence[Candidate]]:
        """Candidates that do not dominate each other, by rising cost, under the name of each series of a report."""
        ...


BASELINES: Registry[Baseline] = Registry("baseline", asked=("fit",))


def register_baseline(baseline: Baseline) -> Baseline:
    """Have each search fit a baseline, and each report show it.

    Args:
        baseline: an object that meets the protocol `pertinence.evaluation.baselines.Baseline`.

    Raises:
        PertinenceError: it has no name, or lacks something.
    """
    return BASELINES.register(getattr(baseline, "name", None), baseline)


def fit_baselines(problem: BaselineProblem) -> dict[str, list[Candidate]]:
    """The candidates of all baselines that are registered, by the name of their series."""
    fitted: dict[str, list[Candidate]] = {}
    for name in BASELINES.names:
        for series, candidates in BASELINES.get(name).fit(problem).items():
            if not candidates or series in fitted:
                raise PertinenceError(f"the baseline {name!r} gives no candidates, or a second series {series!r}")
            fitted[series] = list(candidates)
    return fitted


def load_baselines(
    model_path: str | os.PathLike,
    num_experts: int,
    feature_sizes: Mapping[int, int],
    token: str | bool | None = None,
    revision: str | None = None,
) -> dict[str, tuple[list[Candidate], int]]:
    """The baselines that were tuned when a model was searched; none where they are not stored with it.

    Args:
        model_path: folder or Hub id.
        num_experts: size of the model's pool.
        feature_sizes: width of the pooled features of each expert by its index, and of the `STEM`.
        token, revision: of the Hub.

    Raises:
        PertinenceError: the file is damaged, or belongs to another model.
    """
    path = find_file(model_path, FILE, token, revision=revision)
    if path is None:
        return {}
    try:
        groups, chosen = load_candidates(path, parse_json)
        for name, candidates in groups.items():
            if not is_whole(chosen[name], 0, len(candidates) - 1):
                raise ValueError(f"it chooses none of the baselines {name!r}")
            for candidate in candidates:
                candidate.check(num_experts, feature_sizes)
        return {name: (candidates, chosen[name]) for name, candidates in groups.items()}
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
        RuntimeError,
    ) as error:
        raise PertinenceError(f"{path} is damaged: fetch it again, or remove it to go on without baselines") from error
