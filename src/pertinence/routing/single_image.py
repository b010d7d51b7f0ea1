"""The policy for one image and few labels, in plain Python: for so few numbers it takes a third of the time of arrays.

What `policy.route` does, up to rounding (`tests/end_to_end/test_properties.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import mul

import numpy as np
import torch

from .evidence import LEAST, LOG_FLOOR, TOP_SCORES
from .front import OperatingPoint
from .heads import Head
from .policy import Routing, is_host


FEW_LABELS = 256
"""With more of them arrays are quicker."""


def is_simple(point: OperatingPoint, count: int, num_labels: int) -> bool:
    """Whether `route_one` serves: one image of few labels, and decisions that read answers alone."""
    return count == 1 and num_labels <= FEW_LABELS and point.reads_answers_alone


def route_one(
    point: OperatingPoint,
    heads: Sequence[Head],
    answer_of: Callable[[int], list[float]],
    expert_gmacs: Sequence[float],
    device: torch.device | str = "cpu",
) -> Routing:
    """Send one image through an operating point, as `route` does, where that `is_simple`.

    Args:
        point: where to go and how to mix.
        heads: one for each of `point.decisions`, on the CPU.
        answer_of: the logits of expert i, all of them finite; called at most once per expert.
        expert_gmacs: cost of each expert of the pool.
        device: where the outcome is meant.
    """
    member, ran = point.order[0], []
    log_probs: dict[int, list[float]] = {}
    votes: dict[int, int] = {}
    gmacs, num_experts = 0.0, len(expert_gmacs)
    scores = [[math.nan] * num_experts for _ in heads]
    while True:
        own = answer = answer_of(member)
        ran.append(member)
        gmacs += expert_gmacs[member]
        stage, position = point.stage_after.get(member), point.decision_after.get(member)
        if point.mixes:
            log_probs[member] = _log_softmax(own)
        if stage is not None and stage.mixing is not None:
            weights = dict(zip(point.members, stage.mixing, strict=False))
            answer = _mix([log_probs[m] for m in ran], [weights[m] for m in ran])
        if position is None:
            break
        votes[member] = own.index(max(own))
        head = heads[position]
        gmacs += head.gmacs
        weight, bias, knots = head.numbers
        evidence = evidence_of_one(answer, votes, num_experts, knots)
        actions = [action for action in point.members if action >= member]
        for action in actions:
            scores[position][action] = sum(map(mul, weight[action], evidence), bias[action])
        chosen = max(actions, key=scores[position].__getitem__)
        if chosen == member:
            break
        member = chosen
    was_run = [expert in ran for expert in range(num_experts)]
    routing = Routing(
        torch.from_numpy(np.array([answer], np.float32)),
        torch.from_numpy(np.array([member])),
        torch.from_numpy(np.array([was_run])),
        torch.from_numpy(np.array([gmacs])),
        torch.from_numpy(np.array(scores, np.float32).reshape(1, len(heads), num_experts)),
    )
    return routing if is_host(device) else routing.to(device)


def evidence_of_one(answer: list[float], votes: dict[int, int], num_experts: int, knots: list[float]) -> list[float]:
    """`mix_evidence` of one image.

    Args:
        answer: C logits of the mixture.
        votes: the label that each expert that was run answers with, in the order in which they ran.
        num_experts: size of the pool, N.
        knots: see `mix_evidence`.
    """
    falling = sorted(answer, reverse=True)
    largest = falling[0]
    relative = [math.exp(score - largest) for score in falling]
    total = sum(relative)
    log_total, others = math.log(total), sum(relative[TOP_SCORES:]) / total
    likely = [value / total for value in relative[:TOP_SCORES]]
    outcomes = [max(score - largest - log_total, LOG_FLOOR) for score in falling[:TOP_SCORES]]
    entropy = -sum(map(mul, likely, outcomes), others * math.log(max(others, LEAST)))
    missing = TOP_SCORES - len(falling)
    if missing > 0:
        likely += [0.0] * missing
        outcomes += [LOG_FLOOR] * missing
    rest = math.log(max(sum(likely[1:]) + others, LEAST))
    hinges = [max(outcomes[0] - rest - knot, 0.0) for knot in knots]
    label, given = answer.index(largest), list(votes.values())
    pairs = len(given) * (len(given) - 1)
    agreement = (sum(map(given.count, given)) - len(given)) / pairs if pairs else 1.0
    last_agree = pairs > 0 and given[-1] == given[-2]
    return [
        *outcomes,
        *(likely[0], likely[1], likely[0] - likely[1], entropy, rest),
        *(float(votes.get(expert) == label) for expert in range(num_experts)),
        agreement,
        *hinges,
        *(hinges if last_agree else [0.0] * len(hinges)),
    ]


def _log_softmax(scores: list[float]) -> list[float]:
    largest = max(scores)
    shift = largest + math.log(sum([math.exp(score - largest) for score in scores]))
    return [score - shift for score in scores]


def _mix(log_probs: list[list[float]], weights: list[float]) -> list[float]:
    if len(log_probs) == 1:
        return [weights[0] * value for value in log_probs[0]]
    return [sum(map(mul, weights, values)) for values in zip(*log_probs, strict=True)]
