"""A front of three simulated experts of rising skill, reported on other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pertinence import Front, OperatingPoint, Stage
from pertinence.evaluation.candidates import Candidate
from pertinence.evaluation.outcomes import evaluate_experts, evaluate_point
from pertinence.evaluation.report import Evaluation, evaluate_front
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.routing.heads import Head, threshold_head


NAMES = ("small", "medium", "large")
GMACS = (1.0, 3.0, 10.0)


def make_predictions(count: int, seed: int, num_labels: int = 4) -> Predictions:
    """Three experts of rising skill; some images are harder than others, for all of them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_labels, (count,), generator=generator)
    target = torch.nn.functional.one_hot(labels, num_labels)
    ease = 4 * torch.rand(count, 1, generator=generator)
    experts = [
        ExpertPredictions.keep(skill * ease * target + torch.randn(count, num_labels, generator=generator))
        for skill in (1.0, 1.3, 2.0)
    ]
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs(GMACS))


SEARCH = make_predictions(800, seed=0)
REPORT = make_predictions(500, seed=1)


def chain(name: str, members: Sequence[int], threshold: float, search: Predictions) -> Candidate:
    """A confidence cascade, or with one member an expert alone, as a search would have found it."""
    stages = tuple(Stage(member) for member in members[:-1])
    point = OperatingPoint(name, "thresholds" if stages else "static", tuple(members), stages)
    heads = tuple(threshold_head(point, stage, threshold, 3) for stage in stages)
    found = evaluate_point(point, heads, search)
    return Candidate(replace(point, select=found.figures), heads, found.versus(evaluate_experts(search)[-1]))


def front_of(search: Predictions) -> list[Candidate]:
    return [
        chain("fastest", (0,), 0.0, search),
        chain("cheap", (0, 1), 0.7, search),
        chain("good", (0, 2), 0.8, search),
        chain("most-accurate", (0, 1, 2), 0.95, search),
    ]


def report_on(
    candidates: Sequence[Candidate], predictions: Predictions, search: Predictions = SEARCH, **options
) -> Evaluation:
    options = {"default": candidates[-1].point.name} | options
    heads: dict[str, Sequence[Head]] = {candidate.point.name: candidate.heads for candidate in candidates}
    experts = [one.figures for one in evaluate_experts(search)]
    front = Front([candidate.point for candidate in candidates], NAMES)
    return evaluate_front(front, heads, predictions, **{"select_experts": experts} | options)


FRONT = front_of(SEARCH)
BASELINES = {
    "chains": ([chain("", (0, 2), threshold, SEARCH) for threshold in (0.5, 0.6, 0.9)], 1),
    "experts": ([chain("", (index,), 0.0, SEARCH) for index in range(3)], 2),
}
