"""What a recipe is: a way to turn predictions into trained dispatchers, with their worth on the search images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ...evaluation.candidates import Candidate
from ...evaluation.outcomes import Outcome
from ...predictions.predictions import Predictions
from ...routing.front import OperatingPoint
from ...routing.heads import Head


@dataclass(frozen=True)
class Individual:
    """A fitted genome: one candidate, or a whole curve of them.

    Attributes:
        accuracy, costs: float64 (L,), of each candidate.
        own: index of the candidate that stands for the genome.
        candidate: makes the candidate of an index.
    """

    accuracy: np.ndarray
    costs: np.ndarray
    own: int
    candidate: Callable[[int], Candidate]

    @classmethod
    def of(cls, candidate: Candidate) -> Individual:
        """A genome that makes one candidate."""
        return cls(np.array([candidate.accuracy]), np.array([candidate.cost]), 0, lambda _: candidate)


class Space(Protocol):
    """A search space: what the numbers of a genome mean.

    Attributes:
        lower, upper: float64 (G,), bounds of the genes.
        seeds: float64 (S, G), genomes that the first population starts with.
        neutral: float64 (M, G), genomes that take no search: what the recipe gives by itself.
    """

    @property
    def lower(self) -> np.ndarray: ...

    @property
    def upper(self) -> np.ndarray: ...

    @property
    def seeds(self) -> np.ndarray: ...

    @property
    def neutral(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Box:
    """A space between bounds, for recipes that need no class of their own; see `Space`."""

    lower: np.ndarray
    upper: np.ndarray
    seeds: np.ndarray
    neutral: np.ndarray


@dataclass(frozen=True)
class Problem:
    """What a recipe is fitted to.

    Attributes:
        predictions: of the search images.
        settings: those of the recipe, its own dataclass.
        mixing: whether answers mix the experts that have run; without, the last one answers alone.
        seed: fixes everything random.
        device: where heads are trained.
        division: int64, the images that fit and those that choose, where a recipe of this search divides them (see
            `Recipe.divides`); None: all images do both, and estimates must be out of fold.
        smaller: for some experts the index of the same one on a smaller image, an alternative to it.
    """

    predictions: Predictions
    settings: Any = None
    mixing: bool = True
    seed: int = 0
    device: torch.device | str = "cpu"
    division: tuple[torch.Tensor, torch.Tensor] | None = None
    smaller: Mapping[int, int] = field(default_factory=dict)

    @property
    def judged(self) -> Predictions:
        """Of the images that all recipes of this search are judged on."""
        return self.predictions if self.division is None else self.predictions.subset(self.division[1])


class Recipe(Protocol):
    """A recipe, prepared for the images of a search.

    A subclass inherits what suits a recipe that reads no features and divides no images.

    Attributes:
        name: as it is registered; operating points note it.
        measure: "accuracy" or "agreement", of the predictions.
        space: of its genomes.
        images: how many images do what, for the record.
    """

    name: str
    measure: str
    space: Space
    images: Mapping[str, int] = {}

    @classmethod
    def features_of(cls, settings: Any) -> Sequence[int]:
        """The experts, by pool index, whose pooled features its evidence reads."""
        return ()

    @classmethod
    def divides(cls, settings: Any) -> float | None:
        """The share of the search images that only choose, where the recipe needs such; None: it needs none, as what
        it estimates is out of fold, or as it fits nothing."""
        return None

    @classmethod
    def prepare(cls, problem: Problem) -> Recipe:
        """The recipe for some images."""
        ...

    def evaluate(self, genomes: np.ndarray) -> Iterator[Individual]:
        """Fit and judge a population: genomes (P, G) to P individuals, one after the other."""
        ...


def judge(point: OperatingPoint, heads: tuple[Head, ...], predictions: Predictions, largest: Outcome) -> Individual:
    """The individual that an operating point makes, measured by the code that the model runs; arguments as those of
    `Candidate.measured`."""
    return Individual.of(Candidate.measured(point, heads, predictions, largest))
