"""The built-in baselines: confidence cascades tuned by hand, the longest chain, and recipes without their search."""

from __future__ import annotations

from ..evaluation.baselines import BASELINES, BaselineProblem
from ..evaluation.candidates import Candidate
from .recipes.cascade import CascadeRecipe
from .recipes.families import THRESHOLDS
from .recipes.study import LONGEST, CascadeStudy


class Unsearched:
    """Each recipe without any search: its neutral genomes, or the simplest family of cascades."""

    name = "without search"

    def fit(self, problem: BaselineProblem) -> dict[str, list[Candidate]]:
        return {
            f"{recipe.name} without search": list(recipe.unsearched(problem.statics)) for recipe in problem.recipes
        }


class TunedCascades:
    """What one would write by hand: the best of all confidence cascades of two and three experts, with thresholds
    among quantiles; and one cascade of the whole pool, with fitted heads. Both are stated and chosen like our own."""

    name = "tuned cascades"

    def fit(self, problem: BaselineProblem) -> dict[str, list[Candidate]]:
        studies = (recipe.study for recipe in problem.recipes if isinstance(recipe, CascadeRecipe))
        study = next(studies, None) or CascadeStudy(problem.problem)
        return {"confidence cascades": study.front_of(THRESHOLDS), LONGEST: study.front_of(LONGEST)}


for baseline in (Unsearched(), TunedCascades()):
    BASELINES.register(baseline.name, baseline, is_ours=True)
