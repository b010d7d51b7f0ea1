"""Costs: what running experts costs, by unit; work that several of them share counts once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..utils.registry import Registry


GMACS, LATENCY = "gmacs", "latency"
STEM = -1
"""Stands for the separate stem where a pool index is expected."""


class Cost:
    """A unit of cost: how it is called, measured, and added up along a path of experts.

    Attributes:
        name: in flags, files and `Figures.costs`.
        title: in tables.
        unit: in sentences and at axes.
        is_measured_here: whether it depends on the device, the batch size and the moment; then it is measured once for
            each search, and kept with it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    is_measured_here: ClassVar[bool] = False

    def measure(self, experts: Sequence[Any], how: Any) -> list[float]:
        """Cost of one image, for each expert alone.

        Args:
            experts: loaded experts (see `experts.expert.Expert`).
            how: image, batch size and device to measure with, see `experts.costs.Measurement`.
        """
        raise NotImplementedError

    def marginal(self, values: np.ndarray, rung: int, ran: np.ndarray) -> np.ndarray | float:
        """What running a rung costs images that have been through others.

        Unless a unit knows better, nothing is shared but the expert itself, whose output is there once it has run.

        Args:
            values: float64 (N,), cost of each expert alone.
            rung: pool index of what is run.
            ran: bool (..., N), which experts have run.

        Returns:
            float64 (...).
        """
        return np.where(ran[..., rung], 0.0, values[rung])

    def of_head(self, weights: int) -> float:
        """What a linear map with so many weights costs."""
        return 0.0


COSTS: Registry[Cost] = Registry(
    "cost",
    {
        GMACS: "pertinence.experts.costs:GIGA_MULTIPLY_ADDS",
        LATENCY: "pertinence.experts.costs:MILLISECONDS",
        "parameters": "pertinence.experts.costs:PARAMETERS",
    },
    asked=("title", "unit", "is_measured_here", "measure", "marginal", "of_head"),
)


def register_cost(cost: Cost) -> Cost:
    """Make a unit of cost known, so that a search can minimise it: `--cost NAME`.

    Args:
        cost: an object of a subclass of `pertinence.routing.costs.Cost`.

    Raises:
        PertinenceError: the name is one of ours, or the object lacks something.
    """
    return COSTS.register(getattr(cost, "name", None), cost)


@dataclass(frozen=True)
class PoolCosts:
    """What the experts of a pool cost, of which one unit is the objective of a search.

    Attributes:
        values: for each unit the cost of one image, by expert, (N,).
        stem: the same of the separate stem; units that are absent cost nothing there.
        objective: the unit that a search minimises.
    """

    values: Mapping[str, tuple[float, ...]]
    stem: Mapping[str, float] = field(default_factory=dict)
    objective: str = GMACS

    @classmethod
    def in_gmacs(cls, values: Sequence[float]) -> PoolCosts:
        """Of a pool of which only the operations are known, by expert."""
        return cls({GMACS: tuple(values)})

    @property
    def num_experts(self) -> int:
        return len(next(iter(self.values.values())))

    @property
    def of_experts(self) -> tuple[float, ...]:
        """Cost of each expert alone, in the unit of the objective."""
        return self.values[self.objective]

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return {unit: np.array(values, dtype=float) for unit, values in self.values.items()}

    def alone(self, unit: str) -> np.ndarray:
        """What each expert costs an image that nothing else has run on: float64 (N,)."""
        nothing = np.zeros(self.num_experts, dtype=bool)
        return np.array([float(self.marginal(unit, expert, nothing)) for expert in range(self.num_experts)])

    def with_unit(self, unit: str, values: Sequence[float], stem: float = 0.0) -> PoolCosts:
        """The same with another unit, which becomes the objective."""
        return replace(
            self,
            values={**self.values, unit: tuple(values)},
            stem={**self.stem, unit: stem},
            objective=unit,
        )

    def marginal(self, unit: str, rung: int, ran: np.ndarray) -> np.ndarray | float:
        """What running a rung costs images that have been through others: the only way that paths are priced.

        Args:
            unit: of the cost.
            rung: pool index, or `STEM`.
            ran: bool (..., N), which experts have run.

        Returns:
            float64 (...).
        """
        if rung == STEM:
            return self.stem.get(unit, 0.0)
        return _cost(unit).marginal(self._arrays[unit], rung, ran)

    def of_head(self, unit: str, weights: int) -> float:
        """What a linear map with so many weights costs."""
        return _cost(unit).of_head(weights)

    def chain(self, unit: str, members: Sequence[int]) -> np.ndarray:
        """What each member costs an image that has been through those before it: float64 (M,)."""
        ran = np.zeros(self.num_experts, dtype=bool)
        steps = []
        for member in members:
            steps.append(float(self.marginal(unit, member, ran)))
            ran[member] = True
        return np.array(steps)


class _Unknown(Cost):
    """A unit of a file that nobody has registered here: its numbers are shown as they are."""

    def __init__(self, name: str):
        self.name = self.title = self.unit = name  # type: ignore[misc]


def _cost(unit: str) -> Cost:
    return COSTS.find(unit) or _Unknown(unit)


def cost_title(unit: str) -> str:
    """How tables call a unit."""
    return _cost(unit).title


def cost_unit(unit: str) -> str:
    """How sentences and axes call a unit."""
    return _cost(unit).unit
