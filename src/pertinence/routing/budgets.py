"""Budgets: the operating point that a limit of cost, time or accuracy chooses, by the figures on the search images."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..utils.errors import PertinenceError, shown
from .costs import GMACS, LATENCY, cost_title
from .metrics import Figures


if TYPE_CHECKING:
    from .front import Front, OperatingPoint

logger = logging.getLogger(__name__)

MOST_LOSS = 0.2
"""Largest loss of accuracy that may be asked for: more is a mistake for points in percent."""

_Measured = Sequence[tuple["OperatingPoint", Figures]]
"""Operating points with their figures on the search images."""


def choose_by_budget(
    front: Front,
    reference: Mapping[str, Any] | None,
    *,
    max_accuracy_loss: float | None = None,
    saving: float | None = None,
    **budget: Any,
) -> OperatingPoint:
    """Choose the operating point for the budget of a model.

    Args:
        front: operating points of the model.
        reference: figures of the reference expert on the search images, as its entry stores them; None: not measured.
        max_accuracy_loss: choose the cheapest point whose accuracy is at most this much below that of the reference.
        saving: choose the most accurate point that saves at least this share of the reference's cost.
        budget: the other budgets of `Front.choose`, with `device` and `batch_size`.

    Raises:
        PertinenceError: no point meets the budget, or not exactly one budget is given.
    """
    how = {name: budget.pop(name, None) for name in ("device", "batch_size")}
    if sum(value is not None for value in (max_accuracy_loss, saving, *budget.values())) != 1:
        raise PertinenceError(f"give exactly one of {', '.join(budget)}, max_accuracy_loss, saving")
    if max_accuracy_loss is None and saving is None:
        return front.choose(**budget, **how)
    if saving is not None:
        check_saving(saving)
    else:
        check_loss(max_accuracy_loss)
    if not reference:
        raise PertinenceError("the experts were not measured: search, or choose with `operating_point=`")
    figures = Figures.from_dict(reference)
    if saving is not None:
        return _most_accurate_saving(front, saving, figures)
    return front.choose(**{**budget, "accuracy": figures.accuracy - (max_accuracy_loss or 0.0)}, **how)


def choose_point(
    points: Sequence[OperatingPoint],
    *,
    gmacs: float | None = None,
    latency_ms: float | None = None,
    accuracy: float | None = None,
    costs: Mapping[str, float] | None = None,
    device: str | None = None,
    batch_size: int | None = None,
) -> OperatingPoint:
    """Choose the operating point for one budget: see `Front.choose`."""
    measured = [(point, point.select) for point in points if point.select is not None]
    if not measured:
        raise PertinenceError("no operating point was measured: search, or choose one with `operating_point=`")
    if accuracy is not None:
        check_accuracy(accuracy)
        return _cheapest_reaching(measured, accuracy)
    if latency_ms is not None:
        _check_limit("latency_ms", latency_ms)
        return _most_accurate_within(measured, _milliseconds(points, device, batch_size), latency_ms, LATENCY)
    limits = costs if gmacs is None else {GMACS: gmacs}
    if not isinstance(limits, Mapping) or not limits:
        raise PertinenceError(
            f"`costs` is {'empty' if limits == {} else shown(limits)}, expected a limit for at least one unit, such "
            "as {'gmacs': 1.5}"
        )
    for unit, limit in limits.items():
        _check_limit(unit, limit)
        spent = {point.name: figures.costs[unit] for point, figures in measured if unit in figures.costs}
        if not spent:
            known = ", ".join(measured[0][1].costs)
            raise PertinenceError(f"no operating point was measured in {shown(unit)}, only in {known}")
        best = _most_accurate_within(measured, spent, limit, unit)
        measured = [(point, figures) for point, figures in measured if spent.get(point.name, math.inf) <= limit]
    return best


def _most_accurate_saving(points: Sequence[OperatingPoint], saving: float, reference: Figures) -> OperatingPoint:
    """The most accurate point that saves at least a share of the reference expert's cost."""
    unit, limit = reference.objective, (1 - saving) * reference.cost
    spent = [(point.select.costs[unit], point.name) for point in points if point.select and unit in point.select.costs]
    if spent and min(spent)[0] > limit:
        cost, name = min(spent)
        raise PertinenceError(
            f"no operating point saves {100 * saving:g} % of the reference expert's cost on the search images; the "
            f"cheapest, {name!r}, saves {100 * (1 - cost / reference.cost):.1f} %"
        )
    return choose_point(points, costs={unit: limit})


def check_saving(saving: Any) -> None:
    """Raise `PertinenceError` unless what is to be saved is a share from 0 to 1."""
    _check_share("saving", saving)


def check_accuracy(accuracy: Any) -> None:
    """Raise `PertinenceError` unless an accuracy is a share from 0 to 1."""
    _check_share("accuracy", accuracy)


def check_loss(max_accuracy_loss: Any) -> None:
    """Raise `PertinenceError` unless a loss of accuracy is a share of at most `MOST_LOSS`; below zero it is a gain."""
    _check_limit("max_accuracy_loss", max_accuracy_loss, least=-math.inf)
    if max_accuracy_loss > MOST_LOSS:
        points = {0.5: "half a point", 1.0: "one point"}.get(max_accuracy_loss, f"{max_accuracy_loss:g} points")
        meant = f": {points} is {max_accuracy_loss / 100:g}" if max_accuracy_loss <= 100 * MOST_LOSS else ""
        raise PertinenceError(
            f"max_accuracy_loss={max_accuracy_loss:g} is out of range, expected a share of at most {MOST_LOSS}{meant}"
        )


def _check_share(name: str, share: Any) -> None:
    _check_limit(name, share)
    if share > 1:
        meant = f": {share:g} % is {share / 100:g}" if share <= 100 else ""
        raise PertinenceError(f"{name}={share:g} is out of range, expected a share from 0 to 1{meant}")


def _check_limit(name: str, limit: Any, least: float = 0.0) -> None:
    if not isinstance(limit, Real) or isinstance(limit, bool) or not math.isfinite(limit) or limit < least:
        expected = "a number" if least < 0 else "a number that is not negative"
        raise PertinenceError(f"{name}={shown(limit)} is not a budget, expected {expected}")


def _cheapest_reaching(measured: _Measured, accuracy: float) -> OperatingPoint:
    reaching = [(point, figures) for point, figures in measured if figures.accuracy >= accuracy]
    if not reaching:
        best, of_best = max(measured, key=lambda one: one[1].accuracy)
        raise PertinenceError(
            f"no operating point reaches an {of_best.measure} of {accuracy:g} on the search images; the "
            f"best, {best.name!r}, reaches {of_best.accuracy:.4f}"
        )
    return min(reaching, key=lambda one: (one[1].cost, -one[1].accuracy))[0]


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
            f"latency was measured for {known}: give device=... with latency_ms in Python, or an operating point"
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
