"""Costs of running experts, by unit; work that several experts share counts once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..utils.registry import Registry


GMACS, LATENCY = "gmacs", "latency"
STEM = -1
"""Stands for a separate stem in place of a pool index."""


class Cost:
    """A unit of cost: its names, how it is measured, and how it adds up along a path of experts.

    Attributes:
        name: its name in flags, files and `Figures.costs`.
        title: its name in tables.
        unit: its name in sentences and on axes.
        is_measured_here: whether it depends on the device, the batch size and the moment; if so, it is measured once
            for each search and stored with it.
        depends_on_backend: whether it depends on what runs a network, as time does and operations do not; if so,
            `--variants auto` tries other backends, too.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    is_measured_here: ClassVar[bool] = False
    depends_on_backend: ClassVar[bool] = False

    def measure(self, experts: Sequence[Any], how: Any) -> list[float]:
        """Measure the cost of one image for each expert alone.

        Args:
            experts: loaded experts (see `experts.expert.Expert`).
            how: image, batch size and device for the measurement, see `experts.costs.Measurement`.
        """
        raise NotImplementedError

    def marginal(self, values: np.ndarray, rung: int, ran: np.ndarray) -> np.ndarray | float:
        """The marginal cost of running a cascade level for images that other experts have already run on.

        By default experts share no work, and running an expert again costs nothing. A unit that knows of shared work
        overrides this.

        Args:
            values: float64 (N,), cost of each expert alone.
            rung: pool index of the expert to run.
            ran: bool (..., N), which experts have run.

        Returns:
            float64 (...).
        """
        return np.where(ran[..., rung], 0.0, values[rung])

    def of_head(self, weights: int) -> float:
        """The cost of a head with this many weights."""
        return 0.0


class GigaMultiplyAdds(Cost):
    """GMACs: 10^9 fused multiply-adds, counted when an expert is loaded."""

    name, title, unit = GMACS, "GMACs", "GMACs"

    def measure(self, experts: Sequence[Any], how: Any) -> list[float]:
        return [expert.entry.gmacs for expert in experts]

    def of_head(self, weights: int) -> float:
        return weights / 1e9


class Milliseconds(Cost):
    """Time per image within a batch, preprocessing included; heads are not counted, as they run on the host."""

    name, title, unit = LATENCY, "ms", "milliseconds"
    is_measured_here = depends_on_backend = True

    def measure(self, experts: Sequence[Any], how: Any) -> list[float]:
        measured: list[float] = how.milliseconds(experts)
        return measured


class Parameters(Cost):
    """Number of parameters of the experts that run: the weights that must be in memory for an image."""

    name, title, unit = "parameters", "parameters", "parameters"

    def measure(self, experts: Sequence[Any], how: Any) -> list[float]:
        return [float(expert.entry.parameters) for expert in experts]

    def of_head(self, weights: int) -> float:
        return float(weights)


GIGA_MULTIPLY_ADDS, MILLISECONDS, PARAMETERS = GigaMultiplyAdds(), Milliseconds(), Parameters()
COSTS: Registry[Cost] = Registry(
    "cost",
    {
        GMACS: f"{__name__}:GIGA_MULTIPLY_ADDS",
        LATENCY: f"{__name__}:MILLISECONDS",
        "parameters": f"{__name__}:PARAMETERS",
    },
    asked=("title", "unit", "is_measured_here", "depends_on_backend", "measure", "marginal", "of_head"),
)


def register_cost(cost: Cost) -> Cost:
    """Register a unit of cost, so that a search can minimise it: `--cost NAME`.

    Args:
        cost: an object of a subclass of `pertinence.routing.costs.Cost`.

    Raises:
        PertinenceError: the name is that of a built-in unit, or the object lacks an attribute.
    """
    return COSTS.register(getattr(cost, "name", None), cost)


@dataclass(frozen=True)
class PoolCosts:
    """Costs of the experts of a pool in several units, one of which is the objective of a search.

    Attributes:
        values: for each unit the cost of one image by expert, (N,).
        stem: for each unit the cost of the separate stem; 0 for absent units.
        objective: the unit that the search minimises.
    """

    values: Mapping[str, tuple[float, ...]]
    stem: Mapping[str, float] = field(default_factory=dict)
    objective: str = GMACS

    @classmethod
    def in_gmacs(cls, values: Sequence[float]) -> PoolCosts:
        """Costs of a pool of which only the GMACs of each expert are known."""
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
        """Cost of each expert for an image that no other expert has run on: float64 (N,)."""
        nothing = np.zeros(self.num_experts, dtype=bool)
        return np.array([float(self.marginal(unit, expert, nothing)) for expert in range(self.num_experts)])

    def with_unit(self, unit: str, values: Sequence[float], stem: float = 0.0) -> PoolCosts:
        """A copy with another unit, which becomes the objective."""
        return replace(
            self,
            values={**self.values, unit: tuple(values)},
            stem={**self.stem, unit: stem},
            objective=unit,
        )

    def marginal(self, unit: str, rung: int, ran: np.ndarray) -> np.ndarray | float:
        """The marginal cost of a cascade level after other experts: costs of paths are computed only with this.

        Args:
            unit: unit of the cost.
            rung: pool index, or `STEM`.
            ran: bool (..., N), which experts have run.

        Returns:
            float64 (...).
        """
        if rung == STEM:
            return self.stem.get(unit, 0.0)
        return COSTS.require(unit, "a cost").marginal(self._arrays[unit], rung, ran)

    def of_head(self, unit: str, weights: int) -> float:
        """The cost of a head with this many weights."""
        return COSTS.require(unit, "a cost").of_head(weights)

    def chain(self, unit: str, members: Sequence[int]) -> np.ndarray:
        """Marginal cost of each member of a cascade after those before it: float64 (M,)."""
        ran = np.zeros(self.num_experts, dtype=bool)
        steps = []
        for member in members:
            steps.append(float(self.marginal(unit, member, ran)))
            ran[member] = True
        return np.array(steps)


def cost_title(unit: str) -> str:
    """The name of a unit in tables; one that a file names and that is not registered is shown as it is."""
    found = COSTS.find(unit)
    return unit if found is None else found.title


def cost_unit(unit: str) -> str:
    """The name of a unit in sentences and on axes; see `cost_title`."""
    found = COSTS.find(unit)
    return unit if found is None else found.unit
