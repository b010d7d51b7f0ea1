"""Curves: dispatchers along one chain of experts, one for each trade-off of accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from ...evaluation.candidates import Candidate
from ...evaluation.intervals import non_dominated
from ...predictions.predictions import Predictions
from ...routing.front import OperatingPoint, Stage
from ...routing.heads import Head
from .outputs import EVIDENCE, ROWS_AT_ONCE, FoldedOutputs, Members, PoolOutputs, Recent


TOLERATED_MISMATCH, TOLERATED_IMAGES = 0.01, 25
"""How much, relatively or in images, the cost of the saved heads may differ from that of the decisions that estimate
the accuracy. If evidence has few distinct values, whole groups of images change their route at once, and the two may
differ so much that a dispatcher would wrongly look both accurate and cheap."""


@dataclass(frozen=True)
class Curve:
    """L dispatchers along one chain, by rising trade-off weight of cost, and their figures on the images of the fit.

    Attributes:
        point: operating point without a name, with members and stages.
        weight, bias: float32 (stages, L, E) and (stages, L): an image defers where evidence x weight + bias > 0.
        accuracy: float64 (L,), accuracy of out-of-fold decisions.
        costs: for each unit float64 (L,), mean cost per image with the saved heads.
        objective: the unit of cost that is minimised.
        shares: float64 (L, N), share of images on which each expert ran last, with the saved heads.
        wins, losses: int64 (L,), number of images that only the out-of-fold decisions get right, and that only the
            reference expert gets right.
        samples: number of evaluated images.
        fitted: int64 (L,), rising, which of the fitted dispatchers these are: those whose saved heads do what the
            estimate says.
    """

    point: OperatingPoint
    weight: torch.Tensor
    bias: torch.Tensor
    accuracy: np.ndarray
    costs: dict[str, np.ndarray]
    objective: str
    shares: np.ndarray
    wins: np.ndarray
    losses: np.ndarray
    samples: int
    fitted: np.ndarray

    @property
    def cost(self) -> np.ndarray:
        """float64 (L,), in the unit of the objective."""
        return self.costs[self.objective]

    def heads(self, index: int) -> tuple[Head, ...]:
        """The heads of one dispatcher: exit scores 0, the next member its predicted gain, any later one -1."""
        num_experts = self.shares.shape[1]
        heads = []
        for stage, following in enumerate(self.point.members[1:]):
            weight = torch.zeros(num_experts, self.weight.shape[2])
            bias = torch.full((num_experts,), -1.0)
            bias[self.point.members[stage]] = 0.0
            weight[following], bias[following] = self.weight[stage, index], self.bias[stage, index]
            heads.append(Head(weight, bias))
        return tuple(heads)

    @classmethod
    def of_exits(
        cls,
        outputs: FoldedOutputs,
        members: Members,
        recipe: str,
        heads: tuple[torch.Tensor, torch.Tensor],
        exits: tuple[torch.Tensor, torch.Tensor],
    ) -> Curve:
        """The curve of dispatchers whose exits are known.

        Args:
            outputs: outputs for the images of the fit.
            members: the chain.
            recipe: what made it, for the operating point.
            heads: see `weight` and `bias`.
            exits: int8 (n, L), the stage at which each image exits out-of-fold, and with the saved heads.
        """
        right = torch.stack([outputs.result(members[: count + 1])[0] for count in range(len(members))], 1)
        accuracy, wins, losses = _count(exits[0], right, outputs)
        shares, estimated = (_shares(part, outputs, members) for part in exits[::-1])
        costs = {unit: shares[:, list(members)] @ path_costs(outputs, unit, members) for unit in outputs.costs.values}
        objective = outputs.costs.objective
        expected = estimated[:, list(members)] @ path_costs(outputs, objective, members)
        mismatch = np.abs(expected / costs[objective] - 1)
        kept = np.flatnonzero(mismatch <= max(TOLERATED_MISMATCH, TOLERATED_IMAGES / outputs.samples, mismatch.min()))
        weight, bias = heads
        return cls(
            _point(outputs, members, recipe),
            weight[:, kept],
            bias[:, kept],
            accuracy[kept] / outputs.samples,
            {unit: spent[kept] for unit, spent in costs.items()},
            objective,
            shares[kept],
            wins[kept].astype(np.int64),
            losses[kept].astype(np.int64),
            outputs.samples,
            kept,
        )


class Place(NamedTuple):
    """A dispatcher of a front: its position on a curve; a single expert, by pool index, if there is no curve."""

    curve: Curve | None
    position: int

    def cost(self, statics: Sequence[Candidate]) -> float:
        """Its mean cost, in the unit of the objective."""
        return statics[self.position].cost if self.curve is None else float(self.curve.cost[self.position])


def front_of(curves: Sequence[Curve], statics: Sequence[Candidate]) -> list[Place]:
    """The Pareto front of curves and single experts by their estimates on the images of the fit, by rising cost."""
    places = [Place(None, index) for index in range(len(statics))]
    places += [Place(curve, index) for curve in curves for index in range(len(curve.cost))]
    cost = [one.cost for one in statics] + [value for curve in curves for value in curve.cost.tolist()]
    accuracy = [one.accuracy for one in statics] + [value for curve in curves for value in curve.accuracy.tolist()]
    return [places[index] for index in non_dominated(cost, accuracy)]


class HeldOut:
    """Images that judge curves fitted to others.

    Args:
        predictions: predictions for the images.
    """

    def __init__(self, predictions: Predictions):
        self.outputs = PoolOutputs(predictions)
        self._alone = self.outputs.right
        bytes_each = 4 * len(predictions) * (self.outputs.width + 1)
        self._after: Recent[tuple[torch.Tensor, torch.Tensor]] = Recent(2**28 // max(bytes_each, 1))

    def judge(self, curve: Curve, indices: Sequence[int]) -> tuple[torch.Tensor, np.ndarray]:
        """Whether some dispatchers of a curve are right on each image, bool (n, P); their mean costs, float64 (P,)."""
        members, chosen = curve.point.members, list(indices)
        undecided = torch.ones(len(self.outputs), len(chosen), dtype=torch.bool)
        right, shares = torch.zeros_like(undecided), []
        for position in range(len(members)):
            stage = curve.point.stage_after.get(members[position])
            weights = None if stage is None else stage.mixing
            ran = members[: position + 1]
            evidence, correct = self._after.get((ran, weights), partial(self._make_after, ran, weights))
            exits = undecided
            if position < len(members) - 1:
                goes_on = evidence @ curve.weight[position, chosen].T + curve.bias[position, chosen] > 0
                exits = undecided & ~goes_on
            right |= exits & correct.unsqueeze(1)
            shares.append(exits.double().mean(0).numpy())
            undecided = undecided & ~exits
        return right, np.stack(shares, 1) @ path_costs(self.outputs, curve.objective, members)

    def judge_all(self, places: Sequence[Place]) -> tuple[torch.Tensor, np.ndarray]:
        """The same for the dispatchers of several curves and for single experts, in their order."""
        right, costs = torch.empty(len(self.outputs), len(places), dtype=torch.bool), np.empty(len(places))
        by_curve: dict[int, list[int]] = {}
        for at, place in enumerate(places):
            by_curve.setdefault(id(place.curve), []).append(at)
        for several in by_curve.values():
            curve, positions = places[several[0]].curve, [places[at].position for at in several]
            if curve is None:
                right[:, several] = self._alone[:, positions]
                costs[several] = np.array(self.outputs.costs.of_experts)[positions]
            else:
                right[:, several], costs[several] = self.judge(curve, positions)
        return right, costs

    def _make_after(self, ran: Members, mixing: tuple[float, ...] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Evidence after some experts, and whether the answer is right then, bool (n,)."""
        weights = None if mixing is None else torch.tensor(mixing)
        return self.outputs.evidence(ran, weights), self.outputs.answers(ran, weights) == self.outputs.targets


def _point(outputs: FoldedOutputs, members: Members, recipe: str) -> OperatingPoint:
    stages = []
    for position, member in enumerate(members if outputs.mixing else members[:-1]):
        weights = outputs.saved_weights(members[: position + 1])
        mixing = None if weights is None else tuple(weights.tolist())
        stages.append(Stage(member, EVIDENCE.name, mixing, EVIDENCE.version))
    return OperatingPoint("", recipe, members, tuple(stages))


def path_costs(outputs: PoolOutputs | FoldedOutputs, unit: str, members: Members) -> np.ndarray:
    """Cost of an image that exits after each member, including the heads on its path: float64 (M,)."""
    heads = np.minimum(np.arange(1, len(members) + 1), len(members) - 1)
    size = outputs.num_experts * EVIDENCE.width(outputs.num_experts, 0)
    return np.cumsum(outputs.costs.chain(unit, members)) + heads * outputs.costs.of_head(unit, size)


def _count(exits: torch.Tensor, right: torch.Tensor, outputs: FoldedOutputs) -> np.ndarray:
    """How many images are right, only right here, and only right by the reference, if they exit at the stages `exits`
    (n, L): float64 (3, L)."""
    reference = outputs.reference_right
    counted = []
    for stage in range(right.shape[1]):
        ours = right[:, stage]
        counted.append(_sum([ours, ours & ~reference, ~ours & reference], exits, stage, outputs))
    return np.stack(counted, 1).sum(1)


def _shares(exits: torch.Tensor, outputs: FoldedOutputs, members: Members) -> np.ndarray:
    """Share of the images on which each expert ran last, if they exit at the stages `exits` (n, L): (L, N)."""
    everything = [torch.ones_like(outputs.judged)]
    ended = np.concatenate([_sum(everything, exits, stage, outputs) for stage in range(len(members))])
    shares = np.zeros((exits.shape[1], outputs.num_experts))
    shares[:, list(members)] = ended.T / outputs.samples
    return shares


def _sum(kinds: list[torch.Tensor], exits: torch.Tensor, stage: int, outputs: FoldedOutputs) -> np.ndarray:
    """How many counted images of each kind, bool (n,) each, exit at a stage: (kinds, L)."""
    # Sums of zeros and ones are exact in float32 in any order, up to 2^24 images.
    indicators = (torch.stack(kinds) & outputs.judged).float().to(exits.device)
    parts = zip(indicators.split(ROWS_AT_ONCE, 1), exits.split(ROWS_AT_ONCE), strict=True)
    return sum(kind @ (part == stage).float() for kind, part in parts).cpu().double().numpy()
