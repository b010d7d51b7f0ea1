"""The recipe `cascade`: a decision after every expert; answers mix the experts that have run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluation.candidates import Candidate
from .base import Problem, Recipe
from .families import STARTS
from .outputs import EVIDENCE
from .study import CascadeStudy


class CascadeRecipe(Recipe):
    """The front of the families of cascades that are worth most on images that they were not fitted to.

    Nothing is left to a genetic algorithm: which family makes the front at which cost is chosen by nested
    cross-validation (see `search.nested`), and the chosen ones are fitted to all images.

    Args:
        study: the families on the images of the search.
    """

    name = "cascade"
    space = None

    def __init__(self, study: CascadeStudy):
        self.study, self.measure = study, study.predictions.measure
        self.images = {
            "cross_fit": len(study.predictions),
            "folds": study.outputs.folds,
            "select": study.outputs.samples,
        }

    @classmethod
    def prepare(cls, problem: Problem) -> CascadeRecipe:
        return cls(CascadeStudy(problem, problem.settings.folds))

    def conclude(self, found: Sequence[Candidate]) -> list[Candidate]:
        return self.study.front(self.study.choice)

    def unsearched(self, statics: Sequence[Candidate]) -> list[Candidate]:
        return self.study.front_of(STARTS)

    @property
    def record(self) -> Mapping[str, Any]:
        return {"evidence": {"name": EVIDENCE.name, "version": EVIDENCE.version}, "families": self.study.describe()}
