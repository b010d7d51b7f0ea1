"""Which operating points a server uses: without load, under load, and for a request that asks for one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers.utils import logging

from ..hub.configuration import PertinenceConfig
from ..routing.budgets import Budget
from ..routing.front import Front, OperatingPoint
from ..routing.metrics import Figures
from ..routing.promises import Promises, find_error_promise
from ..utils.errors import PertinenceError
from .arguments import FLOOR, ServedPointArguments
from .controller import ladder


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ServedPoints:
    """The operating points of a server.

    Attributes:
        front: all operating points of the model, which requests may ask for.
        reference: figures of the reference expert on the search images; None: not measured.
        allowed: by falling cost: the point without load, and those that the server may move to.
        promises: what was calibrated.
        max_error_rate: the promised error rate that images are answered at; None: all are answered.
    """

    front: Front
    reference: Figures | None
    allowed: tuple[OperatingPoint, ...]
    promises: Promises | None = None
    max_error_rate: float | None = None

    @classmethod
    def of(cls, config: PertinenceConfig, args: ServedPointArguments) -> ServedPoints:
        """The points of a model.

        Raises:
            PertinenceError: no point meets the budget, or the point without load is below the floor, or cannot keep
                the error rate.
        """
        front, reference, budget = config.build_front(), config.reference_figures, args.without_load
        promises, start, rate = config.build_promises(), front.find(config.operating_point), config.max_error_rate
        if budget.given:
            start, rate = budget.choose(front, reference, promises), budget.max_error_rate
        allowed: tuple[OperatingPoint, ...] = (start,)
        if args.target_latency_ms is not None:
            allowed = _allowed(front, reference, start, args.max_accuracy_loss)
        if rate is not None:
            allowed = tuple(point for point in allowed if point is start or _keeps(promises, point, rate))
        return cls(front, reference, allowed, promises, rate)

    def choose(self, budget: Budget) -> OperatingPoint:
        """The point that a request asks for.

        Raises:
            PertinenceError: no point meets the budget, or it cannot keep the error rate of the server.
        """
        return replace(budget, max_error_rate=self.max_error_rate).choose(self.front, self.reference, self.promises)

    @property
    def costs(self) -> list[float]:
        """Mean cost of an image at each allowed point."""
        return [self.cost(point) for point in self.allowed]

    def cost(self, point: OperatingPoint) -> float:
        """Mean cost of an image at any point, in the unit of the search; 0 if it cannot be compared with those of the
        allowed points. If the only one that is allowed was not measured, its cost is 1."""
        if self.allowed[0].select is None:
            return float(point.name == self.allowed[0].name)
        return 0.0 if point.select is None else point.select.cost


def _keeps(promises: Promises | None, point: OperatingPoint, rate: float) -> bool:
    try:
        find_error_promise(promises, point.name, rate)
    except PertinenceError:
        return False
    return True


def _allowed(
    front: Front, reference: Figures | None, start: OperatingPoint, given: float | None
) -> tuple[OperatingPoint, ...]:
    loss = FLOOR if given is None else given
    if start.select is None or reference is None:
        if given is not None:
            raise PertinenceError(
                "max_accuracy_loss cannot be kept, as the points of this model were not measured: search for one, or "
                "leave it out"
            )
        logger.warning(f"The points of this model were not measured: the server stays at {start.name!r}.")
        return (start,)
    floor = Budget(max_accuracy_loss=loss).choose(front, reference)
    assert floor.select is not None  # it was chosen by these
    if floor.select.cost > start.select.cost:
        if given is not None:
            raise PertinenceError(
                f"the point {start.name!r} loses more than max_accuracy_loss={loss:g}; the cheapest that does not is "
                f"{floor.name!r}: allow a larger loss, or start there"
            )
        return (start,)
    between = [
        point
        for point in front
        if point.select is not None
        and floor.select.cost <= point.select.cost < start.select.cost
        and point.select.accuracy >= floor.select.accuracy
    ]
    costs = {point.name: point.select.cost for point in front if point.select is not None}
    points = [start, *sorted(between, key=lambda point: -costs[point.name])]
    return tuple(points[step] for step in ladder([costs[point.name] for point in points]))
