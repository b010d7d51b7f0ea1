"""Certainty: how probable it is that an answer is right, by its path, and whether more experts would help.

All of it is linear in three statistics of an answer: a saved model needs a few numbers for each operating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.errors import MALFORMED, PertinenceError, explain
from .mixing import LEAST, TOP_SCORES, ArrayT, beside, library


if TYPE_CHECKING:
    from .front import OperatingPoint

NUM_STATISTICS = 3
LARGEST = 30.0
"""Largest margin, and largest log-odds of a confidence, that are told apart: a float32 has no more to say."""
NODES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
"""Shares of the search images at which a `Certainty` records what happens if that many are answered."""
DIGITS = 4
"""Significant digits that are stored."""


def statistics_of(summary: ArrayT) -> ArrayT:
    """Three statistics of answers, from their `mixing.summary` (b, 7): float (b, 3).

    logit(p1), the log-odds of the most probable label; log(p1 / p2), its margin over the second one; and the entropy,
    in which the labels beyond the fifth count as one.
    """
    xp: Any = library(summary)
    log_probs, others = summary[:, :TOP_SCORES], summary[:, TOP_SCORES]
    probs = xp.exp(log_probs)
    rest = _at_least(xp, probs[:, 1:].sum(1) + others, LEAST)
    margin = LARGEST - _at_least(xp, LARGEST - log_probs[:, 0] + log_probs[:, 1], 0.0)
    entropy = -(probs * _at_least(xp, log_probs, -LARGEST)).sum(1) - others * xp.log(_at_least(xp, others, LEAST))
    found: ArrayT = xp.stack([log_probs[:, 0] - xp.log(rest), margin, entropy], 1)
    return found


def _at_least(xp: Any, values: Any, least: float) -> Any:
    """`clip` with one bound, which is faster."""
    return np.maximum(values, least) if xp is np else values.clamp_min(least)


@dataclass(frozen=True)
class Certainty:
    """What is known of the answers of an operating point, fitted to the search images.

    Every row of weights has a constant, then one weight for each statistic of the answer (see `statistics_of`), and
    gives log-odds.

    Attributes:
        exits: float32 (M, 4), for each member the log-odds that an answer is right which an image left there with.
        deferred: float32 (M, 4), the same for images that a decision sends on, and that give up.
        forecasts: float32 (M, 4), for images that a decision sends on the log-odds that their final answer will hardly
            exceed; NaN after the last member, and where too few images were sent on.
        nodes: float32 (`NODES`, 4), what happens to the search images if that share of them is answered: threshold of
            the log-odds, share that is answered, share that is answered wrongly (one image more), and cost relative to
            that without giving up.
    """

    exits: np.ndarray
    deferred: np.ndarray
    forecasts: np.ndarray
    nodes: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certainty) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.nodes.tobytes())

    def log_odds(self, point: OperatingPoint, last: np.ndarray, gave_up: np.ndarray | None, summary: ArrayT) -> ArrayT:
        """Log-odds that answers are right.

        Args:
            point: the operating point that this belongs to.
            last: int64 (b,), the expert that ran last for each image.
            gave_up: bool (b,), the images that gave up; None: no image did.
            summary: (b, 7), of the answers.

        Returns:
            float32 (b,), where the summary is.
        """
        rows = np.searchsorted(point.members, last)
        weights = self.exits[rows]
        if gave_up is not None:
            weights = np.where(gave_up[:, None], self.deferred[rows], weights)
        return _linear(weights, statistics_of(summary))

    def forecast(self, point: OperatingPoint, member: int, summary: np.ndarray) -> np.ndarray | None:
        """The log-odds that the final answers of images will hardly exceed which are sent on after a member: (b,);
        None if that is not known."""
        weights = self.forecasts[point.members.index(member)]
        return None if np.isnan(weights).any() else _linear(weights[None], statistics_of(summary))

    def expected(self, max_error_rate: float) -> tuple[float, float]:
        """What the search images let expect if at most a share of what is answered may be wrong: the share of images
        that is answered, and the cost as a share of the cost without giving up."""
        _, answered, wrong, cost = self.along(np.linspace(0, 1, 201)[1:])
        kept = np.flatnonzero(wrong <= max_error_rate * answered)
        return (0.0, float(cost[0])) if not len(kept) else (float(answered[kept[-1]]), float(cost[kept[-1]]))

    def along(self, shares: np.ndarray) -> np.ndarray:
        """`nodes` at other shares of the search images, interpolated: float64 (4, len(shares))."""
        return np.stack([np.interp(shares, NODES, column) for column in self.nodes.T])

    def without_giving_up(self) -> Certainty:
        """The same, but every image that a decision sends on goes on."""
        return Certainty(self.exits, self.deferred, np.full_like(self.forecasts, np.nan), self.nodes)

    def check(self, where: str, num_members: int) -> None:
        """Raise `PertinenceError` unless this fits an operating point of so many members."""
        shapes = [(num_members, 1 + NUM_STATISTICS)] * 3 + [(len(NODES), 4)]
        parts = [self.exits, self.deferred, self.forecasts, self.nodes]
        if [part.shape for part in parts] != shapes or not all(
            np.isfinite(part).all() for part in (self.exits, self.deferred, self.nodes)
        ):
            raise PertinenceError(
                f"{where}: its `certainty` does not fit its {num_members} members, or holds impossible numbers: fetch "
                "the config again"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values: each row is one text, as a line for each number would make a file long."""
        return {name: [_as_text(row) for row in getattr(self, name)] for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, values: Any) -> Certainty:
        """The inverse of `to_dict`; raises `PertinenceError` if the values are malformed."""
        try:
            parts = {name: [_from_text(row) for row in values[name]] for name in cls.__dataclass_fields__}
            return cls(**{name: np.array(rows, np.float32).reshape(len(rows), -1) for name, rows in parts.items()})
        except MALFORMED as error:
            raise PertinenceError(f"the `certainty` of an operating point is malformed ({explain(error)})") from error

    def rounded(self) -> Certainty:
        """The same with as many digits as are stored, so that it answers as it will after it was saved."""
        return Certainty.from_dict(self.to_dict())


def probability(log_odds: ArrayT) -> ArrayT:
    """The confidence of log-odds, 0 to 1, of the same shape and dtype."""
    found: ArrayT = 1 / (1 + library(log_odds).exp(-log_odds))
    return found


def with_top_probability(logits: ArrayT, confidence: ArrayT) -> ArrayT:
    """Logits (b, C) with a temperature for each image at which the softmax probability of its label is the confidence
    (b,), as far as that is possible above 1 / C: float (b, C), in the same order."""
    xp: Any = library(logits)
    below = logits - xp.amax(logits, -1, keepdims=True)
    wanted = xp.clip(confidence, 1 / logits.shape[-1] + 1e-6, 1 - 1e-6)
    low, high = xp.full_like(confidence, -12.0), xp.full_like(confidence, 12.0)
    for _ in range(40):
        middle = (low + high) / 2
        is_less = 1 / xp.exp(below * xp.exp(middle)[..., None]).sum(-1) < wanted
        low, high = xp.where(is_less, middle, low), xp.where(is_less, high, middle)
    scaled: ArrayT = below * xp.exp(high)[..., None]
    return scaled


def _linear(weights: np.ndarray, statistics: ArrayT) -> ArrayT:
    xp: Any = library(statistics)
    placed: Any = beside(weights, statistics)
    found: ArrayT = xp.clip(placed[:, 0] + (placed[:, 1:] * statistics).sum(1), -LARGEST, LARGEST)
    return found


def _as_text(row: Sequence[float]) -> str:
    return " ".join(f"{value:.{DIGITS}g}" for value in row)


def _from_text(row: str) -> list[float]:
    return [float(value) for value in row.split()]
