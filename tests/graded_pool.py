"""A pool of experts of rising skill, who find the same images hard, by its predictions alone."""

from collections.abc import Sequence

import torch

from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts


def make_predictions(
    count: int = 600,
    num_labels: int = 4,
    seed: int = 0,
    skills: Sequence[float] = (0.5, 0.8, 1.2),
    costs: Sequence[float] = (1.0, 3.0, 10.0),
) -> Predictions:
    """Predictions of one expert for each skill, for images of random labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_labels, (count,), generator=generator)
    ease = torch.rand(count, 1, generator=generator) * torch.nn.functional.one_hot(labels, num_labels)
    experts = [
        ExpertPredictions.keep(6 * skill * ease + torch.randn(count, num_labels, generator=generator))
        for skill in skills
    ]
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs(costs))
