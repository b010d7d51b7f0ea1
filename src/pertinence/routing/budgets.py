"""Budgets: the operating point that a limit of cost, time or accuracy chooses, by the figures on the search images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from inspect import signature
from numbers import Real
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ..utils.errors import PertinenceError, shown
from ..utils.settings import Settings, setting
from .costs import GMACS, LATENCY, cost_title
from .metrics import AGREEMENT, Figures
from .promises import Promises, find_error_promise


if TYPE_CHECKING:
    from .front import Front, OperatingPoint

logger = logging.getLogger(__name__)

MOST_LOSS = 0.2
"""Largest loss of accuracy that may be asked for: more is a mistake for points in percent."""

MEASURED_BY = ("device", "batch_size")
"""Fields of a budget that say which measured milliseconds it limits."""
BESIDE = (*MEASURED_BY, "max_error_rate")
"""Fields of a budget that may be given beside a limit."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Measured = Sequence[tuple["OperatingPoint", Figures]]
"""Operating points with their figures on the search images."""


def check_share(name: str, share: Any) -> None:
    """Raise `PertinenceError` unless a limit is a share from 0 to 1."""
    check_limit(name, share)
    if share > 1:
        meant = f": {share:g} % is {share / 100:g}" if share <= 100 else ""
        raise PertinenceError(f"{name}={share:g} is out of range, expected a share from 0 to 1{meant}")


def check_loss(name: str, loss: Any) -> None:
    """Raise `PertinenceError` unless a loss is a share of at most `MOST_LOSS`; below zero it is a gain."""
    check_limit(name, loss, least=-math.inf)
    if loss > MOST_LOSS:
        points = {0.5: "half a point", 1.0: "one point"}.get(loss, f"{loss:g} points")
        meant = f": {points} is {loss / 100:g}" if loss <= 100 * MOST_LOSS else ""
        raise PertinenceError(f"{name}={loss:g} is out of range, expected a share of at most {MOST_LOSS}{meant}")


def check_limit(name: str, limit: Any, least: float = 0.0) -> None:
    """Raise `PertinenceError` unless a limit is a finite number, not below `least`."""
    if not isinstance(limit, Real) or isinstance(limit, bool) or not math.isfinite(limit) or limit < least:
        expected = "a number" if least < 0 else "a number that is not negative"
        raise PertinenceError(f"{name}={shown(limit)} is not a budget, expected {expected}")


def check_limits(name: str, limits: Any) -> None:
    """Raise `PertinenceError` unless there is a limit for at least one unit of cost."""
    if not isinstance(limits, Mapping) or not limits:
        raise PertinenceError(
            f"`{name}` is {'empty' if limits == {} else shown(limits)}, expected a limit for at least one unit, such "
            "as {'gmacs': 1.5}"
        )
    for unit, limit in limits.items():
        check_limit(unit, limit)


def limit(check: Callable[[str, Any], None], help: str, **more: Any) -> Any:
    """A field of `Budget`: a number that `check` accepts, under the name of the field."""
    return field(default=None, metadata={"help": help, "group": "model", "check": check, **more})


@dataclass(kw_only=True)
class Budget(Settings):
    """What chooses an operating point, by the figures on the search images: at most one limit, which measured
    milliseconds `latency_ms` limits, and the error rate that is promised of what is answered. `costs`, which no flag
    gives, limits other units of cost. Several limits, or one that is no number in its range, raise `PertinenceError`.

    Each kind is one field: it is a flag, an argument of every `set_budget`, and a case of `choose`.
    """

    operating_point: str | None = setting(
        None, "Operating point of this name; default: that of the model.", group="model"
    )
    max_accuracy_loss: float | None = limit(
        check_loss, "Cheapest point that loses at most this accuracy (0 to 0.2) against the reference expert."
    )
    max_class_loss: float | None = limit(
        check_loss, "Cheapest point at which no class is expected to lose more accuracy (0 to 0.2) than this."
    )
    accuracy: float | None = limit(check_share, "Cheapest point of at least this accuracy (0 to 1).")
    saving: float | None = limit(
        check_share,
        "Most accurate point that saves at least this share (0 to 1) of the reference expert's operations.",
    )
    gmacs: float | None = limit(check_limit, "Most accurate point of at most these GMACs an image, on average.")
    latency_ms: float | None = limit(
        check_limit, "Most accurate point of at most these milliseconds an image, see benchmark."
    )
    max_error_rate: float | None = limit(
        check_share,
        "Answer only images of which at most this share (0 to 1) is wrong, as `pertinence calibrate` promised; may be "
        "given beside a limit.",
    )
    costs: Mapping[str, float] | None = limit(
        check_limits, "Most accurate point whose mean costs are at most these, by unit.", is_no_setting=True
    )
    device: str | None = setting(
        None, "Measured device of --latency-ms; default: the only one.", group="model", flag="latency_device"
    )
    batch_size: int | None = setting(
        None, "Measured batch size of --latency-ms; default: the smallest.", group="model", flag="latency_batch_size"
    )

    def __post_init__(self) -> None:
        limits = [name for name in self.given if name not in BESIDE]
        if len(limits) > 1:
            raise PertinenceError(f"give one budget at most, got {' and '.join(limits)}")
        if self.latency_ms is None and (self.device is not None or self.batch_size is not None):
            raise PertinenceError("`device` and `batch_size` say which milliseconds: give `latency_ms` with them")
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and "check" in one.metadata:
                one.metadata["check"](one.name, value)

    @property
    def given(self) -> dict[str, Any]:
        """The limits or the name that are given; empty: the model's own point."""
        return {name: value for name, value in vars(self).items() if value is not None and name not in MEASURED_BY}

    def choose(
        self, front: Front, reference: Figures | None = None, promises: Promises | None = None
    ) -> OperatingPoint:
        """Choose the operating point.

        Args:
            front: operating points of the model.
            reference: figures of the reference expert on the search images; None: not measured.
            promises: what was calibrated, for `max_error_rate`.

        With `max_error_rate` it is the point that is expected to answer most images, of those within the limit; of
        points that answer as many, within a standard error, the cheapest. Only search images choose, so that what was
        promised of every point holds for this one.

        Raises:
            PertinenceError: no point meets the budget; the message names the nearest one. Or there is no budget.
        """
        if not self.given:
            names = [one.name for one in fields(self) if one.name not in MEASURED_BY]
            raise PertinenceError(f"give exactly one of {', '.join(f'`{name}`' for name in names)}")
        if self.max_error_rate is not None:
            return self._most_answering(front, reference, promises, self.max_error_rate)
        if self.operating_point is not None:
            return front.find(self.operating_point)
        measured = [(point, point.select) for point in front if point.select is not None]
        if not measured:
            raise PertinenceError("no operating point was measured: search, or choose one with `operating_point=`")
        if self.max_accuracy_loss is not None:
            return _cheapest_reaching(measured, _known(reference).accuracy - self.max_accuracy_loss)
        if self.max_class_loss is not None:
            return _cheapest_sparing_classes(measured, self.max_class_loss)
        if self.accuracy is not None:
            return _cheapest_reaching(measured, self.accuracy)
        if self.saving is not None:
            return _most_accurate_saving(measured, self.saving, _known(reference))
        if self.latency_ms is not None:
            spent = _milliseconds(front, self.device, self.batch_size)
            return _most_accurate_within(measured, spent, self.latency_ms, LATENCY)
        return _most_accurate_at_costs(measured, self.costs or {GMACS: self.gmacs or 0.0})

    def _most_answering(
        self, front: Front, reference: Figures | None, promises: Promises | None, rate: float
    ) -> OperatingPoint:
        limited = replace(self, max_error_rate=None)
        if self.operating_point is not None:
            find_error_promise(promises, front.find(self.operating_point).name, rate)
            return front.find(self.operating_point)
        known = []
        for point in front:
            if point.certainty is not None and point.select is not None:
                coverage, share = point.certainty.expected(rate)
                costs = {unit: share * cost for unit, cost in point.select.costs.items()}
                known.append((point, coverage, share, replace(point.select, costs=costs)))
        if not known:
            raise PertinenceError(
                "no operating point knows how certain its answers are, so that none can abstain: search again"
            )
        if limited.given:
            limits = limited._limits(front, reference)
            within = [one for one in known if limits(one[0], one[3], one[2])]
            if not within:
                limited.choose(front, reference)  # which says what is nearest, if nothing is within without a promise
                raise PertinenceError(f"no operating point that can abstain is within {limited.given}: allow more")
            known = within
        _, coverage, _, figures = max(known, key=lambda one: one[1])
        error = math.sqrt(coverage * (1 - coverage) / figures.samples)
        level = [one for one in known if one[1] >= coverage - error]
        chosen = min(level, key=lambda one: (one[3].cost, -one[1]))[0]
        find_error_promise(promises, chosen.name, rate)
        return chosen

    def _limits(self, front: Front, reference: Figures | None) -> Callable[[OperatingPoint, Figures, float], bool]:
        """Whether a point is within the limit, by its figures when images are not all answered, and the share of its
        cost that it takes then. Accuracy is that of all answers."""
        if self.max_accuracy_loss is not None or self.accuracy is not None:
            loss = self.max_accuracy_loss
            least = self.accuracy if loss is None else _known(reference).accuracy - loss
            return lambda point, figures, share: figures.accuracy >= (least or 0.0)
        if (worst := self.max_class_loss) is not None:
            return lambda point, figures, share: figures.class_loss is not None and figures.class_loss <= worst
        if self.latency_ms is not None:
            spent, most = _milliseconds(front, self.device, self.batch_size), self.latency_ms
            return lambda point, figures, share: spent.get(point.name, math.inf) * share <= most
        limits = self.costs or {GMACS: self.gmacs or 0.0}
        if self.saving is not None:
            limits = {_known(reference).objective: (1 - self.saving) * _known(reference).cost}
        return lambda point, figures, share: all(
            figures.costs.get(unit, math.inf) <= limit for unit, limit in limits.items()
        )


def takes_budget(
    make: Callable[_P, Budget],
) -> Callable[[Callable[[_T, Budget], OperatingPoint]], Callable[Concatenate[_T, _P], OperatingPoint]]:
    """Let a method that takes a `Budget` take its fields as keywords; `make` is `Budget`, for their types."""

    def decorate(method: Callable[[_T, Budget], OperatingPoint]) -> Callable[Concatenate[_T, _P], OperatingPoint]:
        @wraps(method)
        def call(self: _T, *args: _P.args, **kwargs: _P.kwargs) -> OperatingPoint:
            return method(self, make(*args, **kwargs))

        own, of_budget = signature(method), signature(make)
        first = next(iter(own.parameters.values()))
        call.__signature__ = own.replace(parameters=[first, *of_budget.parameters.values()])  # type: ignore[attr-defined]
        return call

    return decorate


def _known(reference: Figures | None) -> Figures:
    if reference is None:
        raise PertinenceError("the experts were not measured: search, or choose with `operating_point=`")
    return reference


def _most_accurate_at_costs(measured: _Measured, limits: Mapping[str, float]) -> OperatingPoint:
    for unit, limit in limits.items():
        spent = {point.name: figures.costs[unit] for point, figures in measured if unit in figures.costs}
        if not spent:
            known = ", ".join(measured[0][1].costs)
            raise PertinenceError(f"no operating point was measured in {shown(unit)}, only in {known}")
        best = _most_accurate_within(measured, spent, limit, unit)
        measured = [(point, figures) for point, figures in measured if spent.get(point.name, math.inf) <= limit]
    return best


def _most_accurate_saving(measured: _Measured, saving: float, reference: Figures) -> OperatingPoint:
    """The most accurate point that saves at least a share of the reference expert's cost."""
    unit, limit = reference.objective, (1 - saving) * reference.cost
    spent = [(figures.costs[unit], point.name) for point, figures in measured if unit in figures.costs]
    if spent and min(spent)[0] > limit:
        cost, name = min(spent)
        raise PertinenceError(
            f"no operating point saves {100 * saving:g} % of the reference expert's cost on the search images; the "
            f"cheapest, {name!r}, saves {100 * (1 - cost / reference.cost):.1f} %"
        )
    return _most_accurate_at_costs(measured, {unit: limit})


def _cheapest_reaching(measured: _Measured, accuracy: float) -> OperatingPoint:
    reaching = [(point, figures) for point, figures in measured if figures.accuracy >= accuracy]
    if not reaching:
        best, of_best = max(measured, key=lambda one: one[1].accuracy)
        raise PertinenceError(
            f"no operating point reaches an {of_best.measure} of {accuracy:g} on the search images; the "
            f"best, {best.name!r}, reaches {of_best.accuracy:.4f}"
        )
    return min(reaching, key=lambda one: (one[1].cost, -one[1].accuracy))[0]


def _cheapest_sparing_classes(measured: _Measured, limit: float) -> OperatingPoint:
    """The cheapest point at which the bound on what any class loses is at most `limit`."""
    known = [(figures.class_loss, point, figures) for point, figures in measured if figures.class_loss is not None]
    if not known:
        raise PertinenceError(
            "this model was searched without labels, so there are no classes that lose"
            if measured[0][1].measure == AGREEMENT
            else "this model does not know what its classes lose, as an earlier version searched it: search again "
            "(pertinence search --config search.yaml --output-dir a new folder), or choose with `max_accuracy_loss`"
        )
    sparing = [(point, figures) for loss, point, figures in known if loss <= limit]
    if not sparing:
        least, best, _ = min(known, key=lambda one: one[0])
        raise PertinenceError(
            f"no operating point keeps the loss of every class within {limit:g} by the search images; {best.name!r} "
            f"comes nearest, with {least:.4f}"
        )
    return min(sparing, key=lambda one: (one[1].cost, -one[1].accuracy))[0]


def _most_accurate_within(measured: _Measured, spent: Mapping[str, float], limit: float, unit: str) -> OperatingPoint:
    """The most accurate point whose cost is known (`spent`, by name) and at most `limit`."""
    known = [(point, figures) for point, figures in measured if point.name in spent]
    within = [(point, figures) for point, figures in known if spent[point.name] <= limit]
    if not within:
        least, _ = min(known, key=lambda one: spent[one[0].name])
        raise PertinenceError(
            f"no operating point costs at most {limit:g} {cost_title(unit)} on the search images; the cheapest, "
            f"{least.name!r}, costs {spent[least.name]:.4g}"
        )
    # Where equal accuracy is stated, the estimate that chose the points tells them apart.
    return max(within, key=lambda one: (one[1].accuracy, one[1].out_of_fold or 0.0, -one[1].cost))[0]


def _milliseconds(points: Sequence[OperatingPoint], device: str | None, batch_size: int | None) -> dict[str, float]:
    """Milliseconds per image by name of the point: as measured for a device and batch size, else as estimated by the
    search. Of several batch sizes of one device the smallest is taken, and that is said."""
    settings = sorted({(entry.device, entry.batch_size) for point in points for entry in point.latency})
    wanted = [(d, b) for d, b in settings if device in (None, d) and batch_size in (None, b)]
    known = "; ".join(f"device={d!r}, batch_size={b}" for d, b in settings)
    if len({d for d, _ in wanted}) > 1:
        raise PertinenceError(
            f"latency was measured for {known}: give device=... (--latency-device) with it, or an operating point"
        )
    if settings and not wanted:
        raise PertinenceError(f"latency was not measured for that, only for {known}: run `pertinence benchmark`")
    if len(wanted) > 1:
        logger.warning(f"Latency was measured for {known}: batch size {wanted[0][1]} is used, as none was given.")
        wanted = wanted[:1]
    costs = {
        point.name: entry.milliseconds
        for point in points
        for entry in point.latency
        if (entry.device, entry.batch_size) in wanted
    }
    if not settings and device is None and batch_size is None:
        costs = {p.name: p.select.costs[LATENCY] for p in points if p.select and LATENCY in p.select.costs}
    if not costs:
        raise PertinenceError(
            "no operating point has a latency: run `pertinence benchmark`, search with cost='latency', or give "
            "`gmacs=`"
        )
    return costs
