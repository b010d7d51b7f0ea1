"""A recipe of your own: a cascade that exits where the leading label leads clearly.

    pertinence search --plugins recipe --recipe margin --margin-steps 50 ...

After each expert its margin, the largest probability minus the second largest, is compared with a threshold for that
expert. The genetic algorithm searches the thresholds, and with which expert the cascade starts. They are chosen and
judged on the same images: figures on the search images are optimistic, those on the report images are not.
"""

from dataclasses import dataclass, field

import numpy as np

from pertinence import OperatingPoint, Stage, register_recipe
from pertinence.evaluation.candidates import Candidate
from pertinence.evaluation.outcomes import evaluate_experts
from pertinence.routing.evidence import MARGIN
from pertinence.routing.heads import threshold_head
from pertinence.search.recipes.base import Box, Recipe


@dataclass
class MarginArguments:
    margin_steps: int = field(
        default=20, metadata={"help": "Steps between the thresholds 0 and 1: few overfit less.", "least": 1}
    )


class MarginRecipe(Recipe):
    name = "margin"

    def __init__(self, predictions, steps):
        self.predictions, self.steps = predictions, steps
        self.measure, self.images = predictions.measure, {"select": len(predictions)}
        self.reference = evaluate_experts(predictions)[predictions.reference]
        self.last = predictions.num_experts - 1
        upper = np.array([np.nextafter(self.last, 0.0), *[1.0] * self.last])
        alike = np.array([[i, *[t] * self.last] for t in (0.5, 0.1, 0.9) for i in range(self.last)], dtype=float)
        self.space = Box(np.zeros_like(upper), upper, seeds=alike, neutral=alike[: self.last])

    @classmethod
    def prepare(cls, problem):
        return cls(problem.judged, problem.settings.margin_steps)

    def evaluate(self, genomes):
        for start, *thresholds in genomes:
            members = range(int(start), self.last + 1)
            point = OperatingPoint("", self.name, tuple(members), tuple(map(Stage, members)))
            thresholds = np.round(np.array(thresholds) * self.steps) / self.steps
            heads = tuple(
                threshold_head(point, stage, float(thresholds[stage.after]), self.last + 1, MARGIN)
                for stage in point.decisions
            )
            yield Candidate.measured(point, heads, self.predictions, self.reference)


register_recipe("margin", MarginRecipe, MarginArguments)
