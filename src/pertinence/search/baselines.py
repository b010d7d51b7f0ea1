"""The built-in baselines: confidence cascades tuned by the genetic algorithm, and heads fitted without a search."""

from __future__ import annotations

from ..evaluation.baselines import BASELINES, BaselineProblem
from ..evaluation.candidates import Archive, Candidate
from .recipes.chains import MAX_MEMBERS
from .recipes.thresholds import ThresholdRecipe


class Unsearched:
    """The heads of each recipe without any search: only its neutral genomes."""

    name = "without search"

    def fit(self, problem: BaselineProblem) -> dict[str, list[Candidate]]:
        return {f"{recipe.name} without search": self._neutral(recipe, problem) for recipe in problem.recipes}

    def _neutral(self, recipe, problem: BaselineProblem) -> list[Candidate]:
        archive = Archive(problem.statics)
        for individual in recipe.evaluate(recipe.space.neutral):
            entering = archive.improvements(individual.costs, individual.accuracy)
            archive.add([individual.candidate(index) for index in entering])
        return archive.candidates


class ConfidenceCascades:
    """Confidence cascades of two, three and all experts, tuned on the images that they are evaluated on."""

    name = "max-softmax chains"

    def fit(self, problem: BaselineProblem) -> dict[str, list[Candidate]]:
        lengths = sorted({2, min(3, problem.num_whole), min(problem.num_whole, MAX_MEMBERS)})
        return {
            f"max-softmax chain of {count}": problem.evolve(
                ThresholdRecipe(problem.predictions, count, problem.mixing)
            )
            for count in lengths
        }


for baseline in (Unsearched(), ConfidenceCascades()):
    BASELINES.register(baseline.name, baseline, is_ours=True)
