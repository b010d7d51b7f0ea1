"""`Promises`: what was promised of single answers, on images that fitted and chose nothing: error rates and sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..utils.errors import MALFORMED, PertinenceError, explain, shown
from ..utils.tables import Tabular
from ..utils.validation import is_number, is_whole
from .guarantee import about_images
from .metrics import ACCURACY, AGREEMENT, as_plain, format_table
from .mixing import ArrayT
from .prediction_sets import prediction_sets


if TYPE_CHECKING:
    from .front import Front

_T = TypeVar("_T", "ErrorPromise", "CoveragePromise")


@dataclass(frozen=True)
class ErrorPromise:
    """At most so many of the answers of an operating point are wrong, if it answers only what it is sure of.

    Attributes:
        operating_point: name of the point.
        max_error_rate: the promised limit, as a share of the answered images.
        threshold: log-odds of being right from which on an image is answered; None: the promise cannot be kept.
        answered, wrong: number of calibration images that are answered, and wrongly, at the threshold; if there is
            none, at the first one that was tested.
        p_value: exact binomial p-value of the hypothesis that more than the limit are wrong there.
        least: the least limit that the first threshold would have kept.
    """

    operating_point: str
    max_error_rate: float
    threshold: float | None
    answered: int
    wrong: int
    p_value: float
    least: float

    def check(self) -> None:
        """Raise `PertinenceError` unless this can be a promise."""
        shares = (self.max_error_rate, self.p_value, self.least)
        if not (
            isinstance(self.operating_point, str)
            and all(is_number(share, 0, 1) for share in shares)
            and (self.threshold is None or is_number(self.threshold))
            and is_whole(self.answered)
            and is_whole(self.wrong, 0, self.answered)
        ):
            raise PertinenceError(f"`promises` has an impossible error rate: {shown(self, 200)}")


@dataclass(frozen=True)
class CoveragePromise:
    """The prediction sets of an operating point contain the right label at least so often.

    Attributes:
        operating_point: name of the point.
        coverage: share of the images whose set contains the right label, at least, on average.
        threshold: largest score of a label in a set, see `prediction_sets`; None: all labels are in every set.
        mean_size: mean number of labels in the sets of the calibration images.
    """

    operating_point: str
    coverage: float
    threshold: float | None
    mean_size: float

    def sets(self, logits: ArrayT) -> ArrayT:
        """The prediction sets of answers, from their logits (b, C): bool (b, C)."""
        return prediction_sets(logits, math.inf if self.threshold is None else self.threshold)

    def check(self) -> None:
        """Raise `PertinenceError` unless this can be a promise."""
        if not (
            isinstance(self.operating_point, str)
            and is_number(self.coverage, 0, 1)
            and (self.threshold is None or is_number(self.threshold))
            and is_number(self.mean_size, 0)
        ):
            raise PertinenceError(f"`promises` has an impossible coverage: {shown(self, 200)}")


@dataclass(frozen=True)
class Promises(Tabular):
    """What was promised of the answers of a model.

    Attributes:
        confidence: probability, over draws of the calibration images, that all error rates of a point hold.
        samples: number of calibration images.
        images: fingerprint of the calibration images.
        errors: for each operating point and rate what was found.
        sets: for each operating point and coverage what was found.
        measure: "accuracy", or "agreement" if right means to predict what the largest expert predicts.
        shared: share of the images that were left out because the search or its report had used them; None: unknown.
        assumptions: the assumptions, as sentences.
    """

    confidence: float
    samples: int
    images: str
    errors: tuple[ErrorPromise, ...] = ()
    sets: tuple[CoveragePromise, ...] = ()
    measure: str = ACCURACY
    shared: float | None = None
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not is_number(self.confidence, 0, 1) or not is_whole(self.samples, 1):
            raise PertinenceError(
                f"promises need a confidence between 0 and 1 and calibration images, got {shown(self.confidence)} and "
                f"{shown(self.samples)}"
            )
        if self.measure not in (ACCURACY, AGREEMENT) or not is_number(self.shared or 0.0, 0, 1):
            raise PertinenceError(f"promises are of {ACCURACY} or {AGREEMENT}, got {shown(self.measure)}")
        for error in self.errors:
            error.check()
        for one in self.sets:
            one.check()

    @property
    def max_error_rates(self) -> list[float]:
        """The promised error rates, rising."""
        return sorted({promise.max_error_rate for promise in self.errors})

    @property
    def coverages(self) -> list[float]:
        """The promised coverages, rising."""
        return sorted({promise.coverage for promise in self.sets})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = as_plain(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Any) -> Promises:
        """The inverse of `to_dict`; raises `PertinenceError` if the values are malformed."""
        try:
            known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
            known["errors"] = tuple(ErrorPromise(**one) for one in values.get("errors", ()))
            known["sets"] = tuple(CoveragePromise(**one) for one in values.get("sets", ()))
            known["assumptions"] = tuple(map(str, values.get("assumptions", ())))
            return cls(**known)
        except MALFORMED as error:
            if isinstance(error, PertinenceError):
                raise
            raise PertinenceError(f"`promises` is malformed ({explain(error)})") from error

    def check(self, front: Front) -> None:
        """Raise `PertinenceError` unless they are about points of a front, which abstain by their certainty."""
        for error in self.errors:
            if front.find(error.operating_point).certainty is None:
                raise PertinenceError(f"`promises` names {shown(error.operating_point)}, which has no certainty")
        for promise in self.sets:
            front.find(promise.operating_point)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each operating point and rate, and for each operating point and coverage."""
        return [*map(asdict, self.errors), *map(asdict, self.sets)]

    def describe(self, front: Front, point: str | None = None) -> str:
        """The promises of one point, and their assumptions, as text.

        Args:
            front: front of the model.
            point: name of the point; None: the front's default.
        """
        name = front.find(point if point is not None else front.default).name
        lines = []
        rows = [one for one in self.errors if one.operating_point == name]
        if rows:
            header = ["at most wrong", "answered", "wrong of these", "p-value"]
            cells = [
                [
                    f"{100 * one.max_error_rate:g} %",
                    f"{100 * one.answered / self.samples:.1f} %",
                    f"{100 * one.wrong / max(one.answered, 1):.2f} %",
                    f"{one.p_value:.4f}" if one.threshold is not None else f"cannot be kept ({_least(one)})",
                ]
                for one in rows
            ]
            lines += [
                f"Error rates of {name!r} on what it answers, with {100 * self.confidence:g} % confidence:",
                format_table(header, cells),
            ]
        for one in (one for one in self.sets if one.operating_point == name):
            lines.append(
                f"Prediction sets of {name!r} contain the right label in at least {100 * one.coverage:g} % of images, "
                f"on average, and {one.mean_size:.2f} labels."
            )
        lines.append(about_images(self.samples, self.shared, self.assumptions))
        return "\n".join(lines)


def find_error_promise(promises: Promises | None, point: str, rate: float) -> ErrorPromise:
    """The promise of an error rate that `pertinence calibrate` stored for a point.

    Raises:
        PertinenceError: this rate was not calibrated, or the point cannot keep it.
    """
    stored: Iterable[ErrorPromise] = () if promises is None else promises.errors
    found = _find(
        stored,
        point,
        rate,
        lambda one: one.max_error_rate,
        f"max_error_rate={rate:g} was not calibrated: run `pertinence calibrate RUN --max-error-rate {rate:g}` on "
        "images that the search has not seen",
    )
    if found.threshold is None:
        raise PertinenceError(
            f"operating point {point!r} cannot keep max_error_rate={rate:g} on the calibration images: {_least(found)}"
        )
    return found


def find_coverage_promise(promises: Promises | None, point: str, coverage: float) -> CoveragePromise:
    """The promise of prediction sets that `pertinence calibrate` stored for a point; raises likewise."""
    stored: Iterable[CoveragePromise] = () if promises is None else promises.sets
    return _find(
        stored,
        point,
        coverage,
        lambda one: one.coverage,
        f"coverage={coverage:g} was not calibrated: run `pertinence calibrate RUN --coverage {coverage:g}` on images "
        "that the search has not seen",
    )


def _find(stored: Iterable[_T], point: str, value: float, key: Callable[[_T], float], missing: str) -> _T:
    listed = list(stored)
    for promise in listed:
        if promise.operating_point == point and key(promise) == value:
            return promise
    known = ", ".join(f"{one:g}" for one in sorted({key(promise) for promise in listed}))
    raise PertinenceError(missing + (f"; calibrated were {known}" if known else ""))


def _least(promise: ErrorPromise) -> str:
    return f"the least rate that it can keep is about {promise.least:.2g}"
