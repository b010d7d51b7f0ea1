"""`Guarantee`: the bound promised for an operating point, the images that it was tested on, and its assumptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..utils.errors import MALFORMED, PertinenceError, explain, shown
from .metrics import ACCURACY, AGREEMENT, as_plain, format_table


if TYPE_CHECKING:
    from .front import Front


@dataclass(frozen=True)
class Comparison:
    """An operating point compared with the reference expert on the same images.

    Attributes:
        operating_point: name of the point.
        losses, wins: number of images that only the reference expert gets right, and that only the point gets right.
        p_value: p-value of the null hypothesis that the point loses at least as much as the limit.
    """

    operating_point: str
    losses: int
    wins: int
    p_value: float


@dataclass(frozen=True)
class Guarantee:
    """A non-inferiority guarantee: an operating point loses less than a limit against the reference expert, with a
    given confidence.

    Attributes:
        operating_point: name of the cheapest point that qualified.
        max_accuracy_loss: the limit, as a share of future images.
        confidence: probability, over draws of the calibration images, that the promise holds.
        samples: number of calibration images.
        images: fingerprint of the calibration images.
        tested: the comparisons in the order of the tests, from the most expensive point down; the last one may have
            failed.
        measure: "accuracy", or "agreement" if right means to predict what the largest expert predicts.
        shared: share of the images that were left out because the search or its report had used them; None: unknown.
        assumptions: the assumptions of the guarantee, as sentences.
        reference: name of the reference expert; None: the largest one.
    """

    operating_point: str
    max_accuracy_loss: float
    confidence: float
    samples: int
    images: str
    tested: tuple[Comparison, ...]
    measure: str = ACCURACY
    shared: float | None = None
    assumptions: tuple[str, ...] = ()
    reference: str | None = None

    def __post_init__(self) -> None:
        if not (0 < self.max_accuracy_loss < 1 and 0 < self.confidence < 1):
            raise PertinenceError(
                f"a guarantee needs a limit and a confidence between 0 and 1, got {self.max_accuracy_loss} and "
                f"{self.confidence}"
            )
        if self.samples < 1:
            raise PertinenceError(f"a guarantee needs calibration images, got {self.samples}")
        if self.measure not in (ACCURACY, AGREEMENT):
            raise PertinenceError(f"a guarantee is of {ACCURACY} or {AGREEMENT}, got {shown(self.measure)}")
        if self.operating_point not in [tested.operating_point for tested in self.tested]:
            raise PertinenceError(f"the guarantee names {shown(self.operating_point)}, which was not tested")
        if not all(0 <= t.losses + t.wins <= self.samples and min(t.losses, t.wins) >= 0 for t in self.tested):
            raise PertinenceError(f"the guarantee counts more losses and wins than its {self.samples} images")
        if not all(0 <= t.p_value <= 1 for t in self.tested) or not 0 <= (self.shared or 0.0) <= 1:
            raise PertinenceError("the guarantee has p-values or a share that do not lie between 0 and 1")
        if self.proof.p_value > 1 - self.confidence + 1e-12:
            raise PertinenceError(
                f"the guarantee has a p-value of {self.proof.p_value:.3g}, too large for a confidence of "
                f"{self.confidence:g}"
            )

    @property
    def proof(self) -> Comparison:
        """The comparison of the point that qualified."""
        return next(tested for tested in self.tested if tested.operating_point == self.operating_point)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, including those of `proof`."""
        proof = {key: value for key, value in asdict(self.proof).items() if key != "operating_point"}
        return {**as_plain(asdict(self)), **proof}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Guarantee:
        """The inverse of `to_dict`; raises `PertinenceError` if the values are malformed."""
        try:
            tested = tuple(
                Comparison(str(t["operating_point"]), int(t["losses"]), int(t["wins"]), float(t["p_value"]))
                for t in values["tested"]
            )
            shared = values.get("shared")
            return cls(
                str(values["operating_point"]),
                float(values["max_accuracy_loss"]),
                float(values["confidence"]),
                int(values["samples"]),
                str(values["images"]),
                tested,
                values.get("measure", ACCURACY),
                None if shared is None else float(shared),
                tuple(map(str, values.get("assumptions", ()))),
                None if values.get("reference") is None else str(values["reference"]),
            )
        except MALFORMED as error:
            if isinstance(error, PertinenceError):
                raise
            raise PertinenceError(f"`guarantee` is malformed ({explain(error)})") from error

    @property
    def sentence(self) -> str:
        """The promise as a sentence."""
        against = "the largest expert" if self.reference is None else f"the expert {self.reference!r}"
        return (
            f"Guarantee: {self.operating_point!r} loses less than {100 * self.max_accuracy_loss:g} points of "
            f"{self.measure} against {against}, with {100 * self.confidence:g} % confidence."
        )

    def describe(self, front: Front) -> str:
        """The promise, the tests behind it, and its assumptions, as text.

        Args:
            front: front of the model.
        """
        header = ["tested in this order", "GMACs", "losses", "wins", f"loss of {self.measure}", "p-value"]
        rows = []
        for tested in self.tested:
            point = front.find(tested.operating_point)
            figures = point.report or point.select
            rows.append(
                [
                    tested.operating_point + (" *" if tested is self.proof else ""),
                    "" if figures is None else f"{figures.gmacs:.4g}",
                    f"{tested.losses}",
                    f"{tested.wins}",
                    f"{100 * (tested.losses - tested.wins) / self.samples:+.2f} %",
                    f"{tested.p_value:.4f}",
                ]
            )
        notes = ["* guaranteed, the cheapest that qualifies."]
        reference = front.expert_names[-1] if self.reference is None else self.reference
        if [front.expert_names[index] for index in front.find(self.operating_point).members] == [reference]:
            notes.append(f"Only {reference!r} itself qualifies: nothing is saved.")
        notes.append(about_images(self.samples, self.shared, self.assumptions))
        return "\n".join([self.sentence, "", format_table(header, rows), *notes])


def about_images(samples: int, shared: float | None, assumptions: Sequence[str]) -> str:
    """What a promise rests on, as lines: its calibration images, and its assumptions.

    Args:
        samples: number of calibration images.
        shared: share of the images that were left out because the search or its report had used them; None: unknown.
        assumptions: sentences.
    """
    lines = [f"{samples} calibration images."]
    if shared:
        lines.append(f"Left out, as the search or its report has seen them: {100 * shared:.2f} % of the split.")
    if shared is None:
        lines.append("Not checked: whether the search had seen these images.")
    return "\n".join([*lines, *(f"Assumes: {assumption}" for assumption in assumptions)])
