"""Baselines to compare a front with, fitted to the same search images and stored beside the model.

The single experts, random routing among them and the oracle need no fit: every report contains them (see `report`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from safetensors import SafetensorError

from ..hub.layout import BASELINES as FILE
from ..predictions.predictions import Predictions
from ..utils.downloads import find_file
from ..utils.errors import PertinenceError
from ..utils.json_files import parse_json
from ..utils.registry import Registry
from ..utils.validation import is_whole
from .candidates import Candidate, load_candidates


@dataclass(frozen=True)
class BaselineProblem:
    """The data for fitting baselines.

    Attributes:
        predictions: predictions for all search images.
        statics: single experts by rising cost, with their figures on the images that the search evaluates on.
        recipes: prepared recipes of the search (see `search.recipes.base.Recipe`).
        problem: the problem that the recipes of the search were given (see `search.recipes.base.Problem`).
    """

    predictions: Predictions
    statics: Sequence[Candidate]
    recipes: Sequence[Any]
    problem: Any


class Baseline(Protocol):
    """A baseline.

    Attributes:
        name: the name that it is registered by.
    """

    name: str

    def fit(self, problem: BaselineProblem) -> Mapping[str, Sequence[Candidate]]:
        """Fit candidates that do not dominate each other, by rising cost; the keys name series of the report."""
        ...


BASELINES: Registry[Baseline] = Registry("baseline", asked=("fit",))


def register_baseline(baseline: Baseline) -> Baseline:
    """Register a baseline, which every search then fits and every report shows.

    Args:
        baseline: an object that implements the protocol `pertinence.evaluation.baselines.Baseline`.

    Raises:
        PertinenceError: it has no valid name, or lacks an attribute.
    """
    return BASELINES.register(getattr(baseline, "name", None), baseline)


def fit_baselines(problem: BaselineProblem) -> dict[str, list[Candidate]]:
    """Fit all registered baselines; returns candidates by name of the series."""
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
    """Load the baselines that were tuned in the search of a model; empty if none are stored with it.

    Args:
        model_path: folder or Hub id.
        num_experts: size of the model's pool.
        feature_sizes: width of the pooled features of each expert by pool index, and of the `STEM`.
        token, revision: Hub token, and branch, tag or commit.

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
