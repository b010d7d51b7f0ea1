"""Heads: the linear maps that decide, and the heads of a whole front as one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..utils.errors import PertinenceError
from ..utils.modules import keeping_dtype
from .costs import STEM
from .evidence import TOP_PROBABILITY
from .front import Front, OperatingPoint, Stage
from .registry import EVIDENCE


MAX_ELEMENTS = 2**27
"""Largest number of weights of all heads together, so that a file cannot claim any amount of memory."""


@dataclass
class Head:
    """Linear map of one stage from evidence to a score for each action: exit at the expert that just ran (its own
    position), or defer to a later expert of the pool.

    Attributes:
        weight: float32 (N, E), or (P, N, E) for P heads at once.
        bias: float32 (N,), or (P, N).
        statistics: float32 (K,), fitted statistics of the evidence (see `Evidence.fit`); None if it has none.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    statistics: torch.Tensor | None = None

    def scores(self, evidence: np.ndarray) -> np.ndarray:
        """Map evidence (B, E) to scores (B, N), or (P, B, N) for P heads at once."""
        weight, bias = self._arrays
        return evidence @ weight + bias

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return self.weight.numpy().mT, self.bias.numpy()[..., None, :]

    @cached_property
    def fitted(self) -> np.ndarray | None:
        """`statistics` as an array."""
        return None if self.statistics is None else self.statistics.numpy()

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
    weight = torch.zeros(num_experts, evidence.width(num_experts, 0), dtype=torch.float32)
    bias = torch.full((num_experts,), -1.0, dtype=torch.float32)
    following = min(member for member in point.members if member > stage.after)
    bias[stage.after] = 0.0
    weight[following, position] = -1.0
    bias[following] = threshold
    count = evidence.num_statistics
    return Head(weight, bias, torch.zeros(count, dtype=torch.float32) if count else None)


class Dispatcher(nn.Module):
    """The heads of all operating points of a front, stacked by stage and kind of evidence.

    Args:
        front: the front; row r of a stack belongs to the r-th point of the front that has that stage.
        num_experts: size of the pool, N.
        feature_sizes: width of the pooled features of each expert by pool index, and of the `STEM`.
    """

    def __init__(self, front: Front, num_experts: int, feature_sizes: Mapping[int, int]):
        super().__init__()
        # The first stage always exists, so that even a front of single experts is saved with a (then empty) tensor.
        stacked: dict[tuple[int, str], list[str]] = {(0, "features"): []}
        for point in front:
            for stage in point.decisions:
                stacked.setdefault((stage.after, stage.evidence), []).append(point.name)
        kinds = {key: EVIDENCE.require(key[1], "a stage") for key in stacked}
        widths = {key: kind.width(num_experts, feature_sizes.get(key[0], 0)) for key, kind in kinds.items()}
        elements = sum(len(names) * num_experts * widths[key] for key, names in stacked.items())
        if elements > MAX_ELEMENTS:
            raise PertinenceError(
                f"the heads of {len(front)} operating points would take {elements:,} weights, more than "
                f"{MAX_ELEMENTS:,}"
            )
        self.rows = {(name, *key): row for key, names in stacked.items() for row, name in enumerate(names)}
        self.stages = nn.ModuleDict()
        for key, names in stacked.items():
            self.stages[_stack_name(*key)] = _StackedHeads(
                len(names), num_experts, widths[key], kinds[key].num_statistics
            )
        self._heads: dict[str, _Cached] = {}
        self.register_load_state_dict_post_hook(_forget_heads)

    def check(self, source: str) -> None:
        """Raise `PertinenceError` if weights, loaded from `source`, are NaN or infinite."""
        for name, values in self.named_parameters():
            if not values.isfinite().all():
                raise PertinenceError(f"the heads of {source} hold impossible numbers ({name}): fetch them again")

    def heads(self, point: OperatingPoint) -> list[Head]:
        """The heads of one point, one for each of its decisions, in float32 on the CPU, where decisions are made."""
        stacks = [self._stack(stage) for stage in point.decisions]
        state = [stack.state() for stack in stacks]
        cached = self._heads.get(point.name)
        if cached is None or cached.state != state:
            rows = [self.rows[point.name, stage.after, stage.evidence] for stage in point.decisions]
            with torch.inference_mode(False):
                heads = [stack(row) for stack, row in zip(stacks, rows, strict=True)]
            values = [parameter.data for stack in stacks for parameter in stack.parameters()]
            cached = self._heads[point.name] = _Cached(heads, state, values)
        return cached.heads

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_heads": {}}

    @torch.no_grad()
    def set_heads(self, point: OperatingPoint, heads: Sequence[Head]) -> None:
        """Store the heads of one point; raises `PertinenceError` if a shape does not fit its stage."""
        for stage, head in zip(point.decisions, heads, strict=True):
            self._stack(stage).store(self.rows[point.name, stage.after, stage.evidence], head, point.name)
        _forget_heads(self)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Dispatcher:
        """Move the heads with the model, but never cast them: decisions are in float32, whatever the experts use."""
        _forget_heads(self)
        return super()._apply(keeping_dtype(fn), recurse)

    def _stack(self, stage: Stage) -> _StackedHeads:
        stack = self.stages[_stack_name(stage.after, stage.evidence)]
        assert isinstance(stack, _StackedHeads)
        return stack


class _Cached(NamedTuple):
    """The heads of a point, the state of the stacks that they were read from, and the values of these, which are kept
    so that no others can have their addresses."""

    heads: list[Head]
    state: list[list[tuple[int, int]]]
    values: list[torch.Tensor]


def _forget_heads(dispatcher: Dispatcher, *_: Any) -> None:
    dispatcher._heads.clear()


def _stack_name(after: int, evidence: str) -> str:
    return f"{'stem' if after == STEM else after}_{evidence}"


class _StackedHeads(nn.Module):
    def __init__(self, count: int, num_experts: int, size: int, num_statistics: int):
        super().__init__()
        self.weight = _zeros(count, num_experts, size)
        self.bias = _zeros(count, num_experts)
        # Format 1 calls them `knots`: at that time no other evidence had statistics.
        self.knots = _zeros(count, num_statistics) if num_statistics else None

    def state(self) -> list[tuple[int, int]]:
        """Another value if parameters were replaced or changed in place."""
        return [
            (values.data_ptr(), 0 if values.is_inference() else values._version)
            for values in self._parameters.values()
            if values is not None
        ]

    def forward(self, row: int) -> Head:
        """The head of one row; a call, so that offloaded weights are fetched before."""
        statistics = None if self.knots is None else _on_host(self.knots, row)
        return Head(_on_host(self.weight, row), _on_host(self.bias, row), statistics)

    def store(self, row: int, head: Head, name: str) -> None:
        if head.weight.shape != self.weight.shape[1:] or head.bias.shape != self.bias.shape[1:]:
            raise PertinenceError(
                f"operating point {name!r}: a head has shape {tuple(head.weight.shape)}, its stage takes "
                f"{tuple(self.weight.shape[1:])}"
            )
        self.weight[row], self.bias[row] = head.weight, head.bias
        if self.knots is not None:
            assert head.statistics is not None  # `Evidence.fit` returned statistics
            self.knots[row] = head.statistics


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape, dtype=torch.float32), requires_grad=False)


def _on_host(values: torch.Tensor, row: int) -> torch.Tensor:
    return values.data[row].to("cpu", torch.float32)
