"""A baseline of your own: what people try first, a small model and then a larger one where it is less than 90 % sure.

    pertinence search --plugins baseline ...

Of all pairs of experts those that no other pair dominates are reported beside the front of the search.
"""

from itertools import combinations

from pertinence import OperatingPoint, Stage, register_baseline
from pertinence.evaluation.candidates import Archive, Candidate
from pertinence.evaluation.outcomes import evaluate_experts
from pertinence.routing.heads import threshold_head


class Pairs:
    name = "pairs at 90 %"

    def fit(self, problem):
        images, archive = problem.predictions, Archive()
        reference = evaluate_experts(images)[images.reference]
        for pair in combinations(range(images.num_experts), 2):
            stage = Stage(after=pair[0])
            point = OperatingPoint("", "pair", pair, (stage,))
            head = threshold_head(point, stage, 0.9, images.num_experts)
            archive.add([Candidate.measured(point, (head,), images, reference)])
        return {self.name: archive.candidates}


register_baseline(Pairs())
