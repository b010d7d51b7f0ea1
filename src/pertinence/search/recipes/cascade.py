"""The recipe `cascade`: a decision after every expert; answers mix the experts that have run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...evaluation.candidates import Candidate
from ...evaluation.intervals import paired_difference, wilson_interval
from ...predictions.predictions import Predictions
from ...routing.front import OperatingPoint
from ...routing.metrics import Figures
from .arguments import CascadeArguments
from .base import Individual, Problem
from .cascade_fit import PRICES, CascadeCurve, CascadeFitter, CascadeSettings
from .chains import ChainFamily


@dataclass(frozen=True)
class CascadeSpace:
    """Genome of the recipe `cascade`: the first level of the cascade, the spacing of its levels, and lambda.

    The genes are few and coarse, as every free bit costs accuracy on unseen images. Searching anything else (the blend
    of the target, the ridge, the scale of the mixing weights) gains nothing there. Lambda is one of the trade-off
    weights that each fit covers anyway; it only says which point of the curve gives the individual's objectives.

    Args:
        family: the cascades that may be chosen.
    """

    family: ChainFamily

    @property
    def lower(self) -> np.ndarray:
        return np.zeros(3)

    @property
    def upper(self) -> np.ndarray:
        family = self.family
        counts = [family.starts, len(family.spacings), len(PRICES)]
        return np.nextafter(np.array(counts, dtype=float), 0.0)

    @property
    def seeds(self) -> np.ndarray:
        """Every cascade, with a medium lambda."""
        choices = itertools.product(range(len(self.family.spacings)), range(self.family.starts))
        return np.array([[start, spacing, len(PRICES) // 2] for spacing, start in choices]) + 0.5

    @property
    def neutral(self) -> np.ndarray:
        """Every first level, with the first spacing."""
        return self.seeds[: self.family.starts]

    def decode(self, genome: np.ndarray) -> tuple[CascadeSettings, int]:
        """The settings to fit, and the index of lambda."""
        start, spacing, price = (int(gene) for gene in genome)
        return CascadeSettings(self.family.chain(start, self.family.spacings[spacing])), price


class CascadeRecipe:
    """A decision after every expert, fitted backwards and out of fold: `cascade_fit.CascadeFitter`.

    Args:
        fitter: prepared for the search images.
        predictions: the same images.
        family: the cascades that may be chosen.
    """

    name = "cascade"

    def __init__(self, fitter: CascadeFitter, predictions: Predictions, family: ChainFamily):
        self.predictions, self.measure = predictions, predictions.measure
        self.images = {"cross_fit": len(predictions), "folds": fitter.folds, "select": fitter.samples}
        self.space = CascadeSpace(family)
        # Genomes that differ only in lambda, or in nothing that matters, share a fit.
        self.fit = lru_cache(maxsize=None)(fitter.fit)

    @classmethod
    def features_of(cls, settings: CascadeArguments) -> Sequence[int]:
        return []

    @classmethod
    def divides(cls, settings: CascadeArguments) -> None:
        return None

    @classmethod
    def prepare(cls, problem: Problem) -> CascadeRecipe:
        select_rows, seed = None, problem.seed
        if problem.division is not None:
            # A seed other than that of the division, so that the images of both parts are spread over all folds.
            select_rows, seed = problem.division[1], seed + 1
        fitter = CascadeFitter(
            problem.predictions, problem.settings.folds, seed, problem.mixing, select_rows, problem.device
        )
        return cls(fitter, problem.predictions, ChainFamily.of(problem.judged, problem.smaller))

    def evaluate(self, genomes: np.ndarray) -> Iterator[Individual]:
        for genome in genomes:
            settings, price = self.space.decode(genome)
            curve = self.fit(settings)
            own = int(np.abs(curve.prices - price).argmin())
            yield Individual(curve.accuracy, curve.cost, own, self._maker(curve))

    def _maker(self, curve: CascadeCurve) -> Callable[[int], Candidate]:
        def candidate(index: int) -> Candidate:
            accuracy = float(curve.accuracy[index])
            figures = Figures(
                accuracy,
                wilson_interval(accuracy, curve.samples),
                {unit: float(spent[index]) for unit, spent in curve.costs.items()},
                tuple(curve.shares[index].tolist()),
                curve.samples,
                self.predictions.candidates is not None,
                self.predictions.costs.objective,
                self.predictions.measure,
                estimate=True,
            )
            point = OperatingPoint("", self.name, curve.point.members, curve.point.stages, figures)
            versus = paired_difference(int(curve.wins[index]), int(curve.losses[index]), curve.samples)
            return Candidate(point, curve.heads(index), versus)

        return candidate
