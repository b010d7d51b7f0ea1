"""Heads: the linear maps that decide, and how the heads of a whole front are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..utils.errors import PertinenceError
from .costs import STEM
from .evidence import TOP_PROBABILITY
from .front import Front, OperatingPoint, Stage
from .mixing import Array
from .registry import EVIDENCE


MAX_ELEMENTS = 2**27
"""Largest number of weights of all heads together, so that a file cannot claim any amount of memory."""

PREFIX = "dispatcher."
"""How the names of the weights of heads begin."""
FORMER = f"{PREFIX}answers"
"""The name of the counts of the routing reference, float32, among the weights of models saved before it had its own
file."""


@dataclass
class Head:
    """Linear map of one stage from evidence to a score for each action: exit at the expert that just ran (its own
    position), or defer to a later expert of the pool.

    Attributes:
        weight: float32 (N, E), or (P, N, E) for P heads at once; an array, or a tensor on the CPU.
        bias: float32 (N,), or (P, N).
        statistics: float32 (K,), fitted statistics of the evidence (see `Evidence.fit`); None if it has none.
    """

    weight: Array
    bias: Array
    statistics: Array | None = None

    def scores(self, evidence: np.ndarray) -> np.ndarray:
        """Map evidence (B, E) to scores (B, N), or (P, B, N) for P heads at once."""
        weight, bias = self._arrays
        return evidence @ weight + bias

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.weight).mT, np.asarray(self.bias)[..., None, :]

    @cached_property
    def fitted(self) -> np.ndarray | None:
        """`statistics` as an array."""
        return None if self.statistics is None else np.asarray(self.statistics)

    @property
    def size(self) -> int:
        """Number of weights of one head."""
        return self.weight.shape[-1] * self.weight.shape[-2]


def threshold_head(
    point: OperatingPoint, stage: Stage, threshold: float, num_experts: int, position: int = TOP_PROBABILITY
) -> Head:
    """The head that defers to the next member if one column of "confidence" or "mix" is below a threshold.

    Exit scores 0, the next member scores threshold - column, and any later one scores -1 (never chosen as long as the
    column is at most 1 above the threshold).

    Args:
        point: the operating point that the stage belongs to.
        stage: the stage that decides; it reads "confidence" or "mix".
        threshold: threshold of the column.
        num_experts: size of the pool, N.
        position: position of the column in the evidence: `TOP_PROBABILITY`, or `MARGIN`, by which the largest
            probability exceeds the second largest.
    """
    evidence = EVIDENCE.require(stage.evidence, "a stage")
    weight = np.zeros((num_experts, evidence.width(num_experts, 0)), dtype=np.float32)
    bias = np.full(num_experts, -1.0, dtype=np.float32)
    following = min(member for member in point.members if member > stage.after)
    bias[stage.after] = 0.0
    weight[following, position] = -1.0
    bias[following] = threshold
    count = evidence.num_statistics
    return Head(weight, bias, np.zeros(count, dtype=np.float32) if count else None)


@dataclass(frozen=True)
class Stack:
    """The heads of one stage and kind of evidence, of all operating points that have them: one tensor of weights.

    Attributes:
        name: its part of the names of tensors.
        points: names of the operating points, by row.
        width: how many numbers the evidence has.
        num_statistics: how many fitted statistics the evidence has.
    """

    name: str
    points: tuple[str, ...]
    width: int
    num_statistics: int


def head_stacks(front: Front, num_experts: int, feature_sizes: Mapping[int, int]) -> list[Stack]:
    """How the heads of a front are stored; row r of a stack belongs to the r-th point of the front that has its stage.

    Args:
        front: the front.
        num_experts: size of the pool, N.
        feature_sizes: width of the pooled features of each expert by pool index, and of the `STEM`.

    Raises:
        PertinenceError: they would take more than `MAX_ELEMENTS` weights.
    """
    # The first stage always exists, so that even a front of single experts is saved with a (then empty) tensor.
    stacked: dict[tuple[int, str], list[str]] = {(0, "features"): []}
    for point in front:
        for stage in point.decisions:
            stacked.setdefault((stage.after, stage.evidence), []).append(point.name)
    stacks = []
    for (after, evidence), names in stacked.items():
        kind = EVIDENCE.require(evidence, "a stage")
        width = kind.width(num_experts, feature_sizes.get(after, 0))
        stacks.append(Stack(stack_name(Stage(after, evidence)), tuple(names), width, kind.num_statistics))
    elements = sum(len(stack.points) * num_experts * stack.width for stack in stacks)
    if elements > MAX_ELEMENTS:
        raise PertinenceError(
            f"the heads of {len(front)} operating points would take {elements:,} weights, more than {MAX_ELEMENTS:,}"
        )
    return stacks


def stack_name(stage: Stage) -> str:
    """The name of the stack that has the head of a stage."""
    return f"{'stem' if stage.after == STEM else stage.after}_{stage.evidence}"
