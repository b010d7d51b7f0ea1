"""The `Recipe` protocol: a recipe turns predictions into trained dispatchers and estimates their figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ...evaluation.candidates import Archive, Candidate
from ...predictions.predictions import Predictions


class Space(Protocol):
    """A search space of genomes.

    Attributes:
        lower, upper: float64 (G,), bounds of the genes.
        seeds: float64 (S, G), genomes that the first population starts with.
        neutral: float64 (M, G), default genomes, which give the result of the recipe without a search.
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
    """A space given by its bounds, for recipes that need no class of their own; see `Space`."""

    lower: np.ndarray
    upper: np.ndarray
    seeds: np.ndarray
    neutral: np.ndarray


@dataclass(frozen=True)
class Problem:
    """The input of a recipe.

    Attributes:
        predictions: predictions for the search images.
        settings: settings of the recipe, its own dataclass.
        mixing: whether answers mix the outputs of the experts that have run; otherwise the last one answers alone.
        seed: random seed.
        device: device to train heads on.
        division: int64, the images that fit and those that choose, if a recipe of this search divides them (see
            `Recipe.divides`); None: all images do both, and estimates must be out-of-fold.
        smaller: for some experts the index of their variant with a smaller input.
        reference: pool index of the expert that others are compared with; None: the most accurate one on these images.
        shows_progress: whether this process shows progress bars.
    """

    predictions: Predictions
    settings: Any = None
    mixing: bool = True
    seed: int = 0
    device: torch.device | str = "cpu"
    division: tuple[torch.Tensor, torch.Tensor] | None = None
    smaller: Mapping[int, int] = field(default_factory=dict)
    reference: int | None = None
    shows_progress: bool = False

    @property
    def compared_with(self) -> int:
        """Pool index of the expert that others are compared with."""
        return self.predictions.reference if self.reference is None else self.reference

    @property
    def judged_rows(self) -> torch.Tensor | None:
        """int64, the images that all recipes of this search are evaluated on; None: all."""
        return None if self.division is None else self.division[1]

    @property
    def judged(self) -> Predictions:
        """Predictions for these images."""
        return self.predictions if self.judged_rows is None else self.predictions.subset(self.judged_rows)


class Recipe(Protocol):
    """A recipe, prepared for the images of a search.

    Subclasses inherit defaults for a recipe that reads no features and does not divide the images.

    Attributes:
        name: the name that it is registered by, and that operating points record.
        measure: "accuracy" or "agreement", as in the predictions.
        space: space of its genomes; None if there is nothing to search.
        images: number of images by purpose, for the record.
    """

    name: str
    measure: str
    space: Space | None
    images: Mapping[str, int] = {}

    @property
    def record(self) -> Mapping[str, Any]:
        """Whatever else the record of the search tells of it, as plain values."""
        return {}

    @classmethod
    def features_of(cls, settings: Any) -> Sequence[int]:
        """The experts, by pool index, whose pooled features its evidence reads."""
        return ()

    @classmethod
    def divides(cls, settings: Any) -> float | None:
        """The share of the search images that the recipe needs only for choosing; None: it needs none, as its
        estimates are out-of-fold, or it fits nothing."""
        return None

    @classmethod
    def prepare(cls, problem: Problem) -> Recipe:
        """Make the recipe for the images of a search."""
        ...

    def evaluate(self, genomes: np.ndarray) -> Iterator[Candidate]:
        """Fit and evaluate a population: genomes (P, G) to P candidates, one after the other; by default none, for a
        recipe with nothing to search."""
        return iter(())

    def conclude(self, found: Sequence[Candidate]) -> Sequence[Candidate]:
        """The candidates of the recipe after its search, which found a Pareto front; by default that front."""
        return found

    def unsearched(self, statics: Sequence[Candidate]) -> Sequence[Candidate]:
        """The front of the recipe without a search: by default that of the neutral genomes of its space and of single
        experts; that of `conclude` if there is nothing to search."""
        if self.space is None:
            return self.conclude(statics)
        return Archive([*statics, *self.evaluate(self.space.neutral)]).candidates
