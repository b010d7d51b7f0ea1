"""A study of families of cascades on the images of a search: which to take at which cost, and their fronts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from ...evaluation.candidates import Candidate, static_candidates
from ...evaluation.intervals import paired_difference, wilson_interval
from ...evaluation.outcomes import evaluate_experts
from ...predictions.predictions import Predictions
from ...routing.metrics import Figures
from ..nested import SAVINGS, Judgement, NestedCurve, choose_by_cost, nested_curves
from ..points import default_point
from .base import Problem
from .chains import rungs_of
from .curves import Curve, HeldOut, Place, front_of
from .families import Chain, Family, families_of
from .outputs import FoldedOutputs


LONGEST = "longest chain"


class _Taken(NamedTuple):
    """A point that a front takes from a family: the share of the cost that it saves, and the family's nested curve."""

    saved: float
    place: Place
    nested: NestedCurve

    @property
    def accuracy(self) -> float:
        """What the nested curve says at its cost."""
        return float(np.interp(self.saved, SAVINGS, self.nested.accuracy))


class CascadeStudy:
    """The families of cascades over a pool, compared by nested cross-validation, and fitted to all search images.

    Args:
        problem: the images of the search, and how answers are made.
        folds: number of folds for out-of-fold estimates.
    """

    def __init__(self, problem: Problem, folds: int = 5):
        self.problem, self.folds, self.predictions = problem, folds, problem.predictions
        whole = [index for index in range(self.predictions.num_experts) if index not in problem.smaller.values()]
        rungs = rungs_of(problem.judged, whole)
        self.families = families_of(rungs, problem.smaller, self.predictions.costs.of_experts)
        self.compared = [*self.families, Family(LONGEST, self.families[0].chains[:1])]
        self._fitted: dict[Chain, Curve] = {}
        self._fronts: dict[str, list[Place]] = {}

    @cached_property
    def outputs(self) -> FoldedOutputs:
        """The search images, prepared for fits."""
        problem, judged = self.problem, self.problem.judged_rows
        # With a division another seed than its own, so that the images of both parts are spread over all folds.
        return self._prepare(self.predictions, problem.seed + (judged is not None), judged)

    def _prepare(self, predictions: Predictions, seed: int, judged: torch.Tensor | None = None) -> FoldedOutputs:
        problem = self.problem
        return FoldedOutputs(
            predictions, self.folds, seed, problem.mixing, judged, problem.compared_with, problem.device
        )

    @cached_property
    def statics(self) -> list[Candidate]:
        """Every expert alone, on the images that count."""
        judged = self.problem.judged
        return static_candidates(evaluate_experts(judged), self.problem.compared_with)

    @cached_property
    def nested(self) -> dict[str, NestedCurve]:
        """The nested curve of each family, by name."""
        problem = self.problem
        curves = nested_curves(
            self.predictions, self._fit_all, problem.seed + 1, problem.judged_rows, problem.shows_progress
        )
        return {family.name: curve for family, curve in zip(self.compared, curves, strict=True)}

    def _fit_all(self, train: Predictions) -> Callable[[Predictions], Iterator[Judgement]]:
        """Fit the front of each family to a part of the images; see `nested.Fit`."""
        outputs = self._prepare(train, self.problem.seed)
        reference = self.problem.compared_with
        statics = static_candidates(evaluate_experts(train), reference)
        fitted: dict[Chain, Curve] = {}
        fronts = [front_of(family.fit(outputs, fitted), statics) for family in self.compared]
        cost = statics[reference].cost
        defaults = [default_point([self._candidate(p, None, statics) for p in front], cost)[0] for front in fronts]

        def judge(held: Predictions) -> Iterator[Judgement]:
            images = HeldOut(held)
            return ((*images.judge_all(front), default) for front, default in zip(fronts, defaults, strict=True))

        return judge

    @cached_property
    def choice(self) -> np.ndarray:
        """Index of the family to take at each saving: int64 (S,)."""
        return choose_by_cost([self.nested[family.name] for family in self.families])

    def front_of(self, name: str) -> list[Candidate]:
        """The front of one family, by rising cost."""
        index = [family.name for family in self.compared].index(name)
        return self.front(np.full(len(SAVINGS), index))

    def front(self, choice: np.ndarray) -> list[Candidate]:
        """The front of several families, each where it is chosen, by rising cost.

        Each family's points do not dominate each other by out-of-fold estimates. The accuracy that is stated for them
        is that of the nested curve at their cost, made monotone; so it may be equal for points of different costs.

        Args:
            choice: for each of `SAVINGS` the index of a family; the last one is the longest chain alone.
        """
        taken = []
        for index in np.unique(choice).tolist():
            family = self.compared[index]
            for place in self._places_of(family):
                saved = 1 - place.cost(self.statics) / self.predictions.costs.of_experts[-1]
                if choice[np.abs(SAVINGS - saved).argmin()] == index:
                    taken.append(_Taken(saved, place, self.nested[family.name]))
        taken.sort(key=lambda one: -one.saved)
        stated = zip(taken, self._stated(taken), strict=True)
        return [self._candidate(one.place, accuracy, self.statics) for one, accuracy in stated]

    def _stated(self, taken: Sequence[_Taken]) -> list[float]:
        """The accuracy to state for each point, by rising cost; single experts keep what was measured."""
        candidates = [self._candidate(one.place, None, self.statics) for one in taken]
        alone = np.array([one.place.curve is None for one in taken])
        known = np.where(alone, [one.accuracy for one in candidates], [one.accuracy for one in taken])
        stated = _monotone(known, alone)
        default, _ = default_point(candidates, self.statics[self.problem.compared_with].cost)
        if not alone[default]:
            # The images that chose it are among those that draw the curve. Nothing cheaper is stated to be better.
            up_to = slice(default + 1)
            honest = stated[default] - max(taken[default].nested.optimism, 0.0)
            stated[up_to] = np.minimum(stated[up_to], max(honest, np.where(alone, known, 0.0)[up_to].max()))
        return stated.tolist()

    def _places_of(self, family: Family) -> list[Place]:
        if family.name not in self._fronts:
            self._fronts[family.name] = front_of(family.fit(self.outputs, self._fitted), self.statics)
        return self._fronts[family.name]

    def _candidate(self, place: Place, stated: float | None, statics: Sequence[Candidate]) -> Candidate:
        """The candidate of a place; `stated`: its accuracy, default: by out-of-fold decisions."""
        curve, index = place
        if curve is None:
            return statics[index]
        stated = float(curve.accuracy[index]) if stated is None else stated
        figures = Figures(
            stated,
            wilson_interval(stated, curve.samples),
            {unit: float(spent[index]) for unit, spent in curve.costs.items()},
            tuple(curve.shares[index].tolist()),
            curve.samples,
            self.predictions.candidates is not None,
            curve.objective,
            self.predictions.measure,
            estimate=True,
            out_of_fold=float(curve.accuracy[index]),
        )
        versus = paired_difference(int(curve.wins[index]), int(curve.losses[index]), curve.samples)
        return Candidate(replace(curve.point, select=figures), curve.heads(index), versus)

    def describe(self) -> list[dict[str, Any]]:
        """The families, what each is worth on images that were left out, and at which savings it is taken."""
        described = []
        for index, family in enumerate(self.families):
            curve, savings = self.nested[family.name], SAVINGS[self.choice == index]
            described.append(
                {
                    "name": family.name,
                    "chains": len(family.chains),
                    "area": curve.area,
                    "area_gain": curve.area_gain,
                    "area_error": curve.area_error,
                    "taken_at": [round(float(value), 2) for value in savings],
                }
            )
        return described


def _monotone(given: np.ndarray, is_fixed: np.ndarray) -> np.ndarray:
    """The nearest values that never fall; fixed ones, which rise, stay as they are: float64 (P,)."""
    rising = isotonic_regression(given, weights=np.where(is_fixed, 1e9, 1.0)).x
    rising = np.maximum.accumulate(np.where(is_fixed, given, rising))
    bound = np.minimum.accumulate(np.where(is_fixed, given, np.inf)[::-1])[::-1]
    return np.minimum(rising, bound)
