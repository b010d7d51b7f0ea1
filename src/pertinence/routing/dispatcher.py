"""The heads of a whole front as one module of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..utils.errors import PertinenceError
from ..utils.modules import keeping_dtype
from .front import Front, OperatingPoint, Stage
from .heads import Head, Stack, head_stacks, stack_name


class Dispatcher(nn.Module):
    """The heads of all operating points of a front, stacked by stage and kind of evidence.

    Args:
        front: the front; row r of a stack belongs to the r-th point of the front that has that stage.
        num_experts: size of the pool, N.
        feature_sizes: width of the pooled features of each expert by pool index, and of the `STEM`.
    """

    def __init__(self, front: Front, num_experts: int, feature_sizes: Mapping[int, int]):
        super().__init__()
        stacks = head_stacks(front, num_experts, feature_sizes)
        self.rows = {(name, stack.name): row for stack in stacks for row, name in enumerate(stack.points)}
        self.stages = nn.ModuleDict({stack.name: _StackedHeads(stack, num_experts) for stack in stacks})
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
            rows = [self.rows[point.name, stack_name(stage)] for stage in point.decisions]
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
            self._stack(stage).store(self.rows[point.name, stack_name(stage)], head, point.name)
        _forget_heads(self)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Dispatcher:
        """Move the heads with the model, but never cast them: decisions are in float32, whatever the experts use."""
        _forget_heads(self)
        return super()._apply(keeping_dtype(fn), recurse)

    def _stack(self, stage: Stage) -> _StackedHeads:
        stack = self.stages[stack_name(stage)]
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


class _StackedHeads(nn.Module):
    def __init__(self, stack: Stack, num_experts: int):
        super().__init__()
        count = len(stack.points)
        self.weight = _zeros(count, num_experts, stack.width)
        self.bias = _zeros(count, num_experts)
        # Format 1 calls them `knots`: at that time no other evidence had statistics.
        self.knots = _zeros(count, stack.num_statistics) if stack.num_statistics else None

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
        self.weight[row], self.bias[row] = torch.as_tensor(head.weight), torch.as_tensor(head.bias)
        if self.knots is not None:
            assert head.statistics is not None  # `Evidence.fit` returned statistics
            self.knots[row] = torch.as_tensor(head.statistics)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape, dtype=torch.float32), requires_grad=False)


def _on_host(values: torch.Tensor, row: int) -> torch.Tensor:
    return values.data[row].to("cpu", torch.float32)
