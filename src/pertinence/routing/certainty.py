"""Certainty: how probable it is that an answer is right, by its path, and whether more experts would help.

All of it is linear in three statistics of an answer: a saved model needs a few numbers for each operating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.errors import MALFORMED, PertinenceError, explain
from ..utils.validation import is_number
from .mixing import LEAST, TOP_SCORES, Array, library


if TYPE_CHECKING:
    from .front import OperatingPoint

NUM_STATISTICS = 3
LARGEST = 30.0
"""Largest margin, and largest log-odds of a confidence, that are told apart: a float32 has no more to say."""
NODES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the search images at which a `Certainty` records what happens if that many are answered."""
DIGITS = 5
"""Significant digits that are stored."""


def statistics_of(summary: Array) -> Array:
    """Three statistics of answers, from their `mixing.summary` (b, 7): float (b, 3).

    logit(p1), the log-odds of the most probable label; log(p1 / p2), its margin over the second one; and the entropy,
    in which the labels beyond the fifth count as one.
    """
    xp = library(summary)
    log_probs, others = summary[:, :TOP_SCORES], summary[:, TOP_SCORES : TOP_SCORES + 1]
    probs = xp.exp(log_probs)
    rest = xp.clip(probs[:, 1:].sum(1) + others[:, 0], LEAST, 1.0)
    margin = xp.clip(log_probs[:, 0] - log_probs[:, 1], 0.0, LARGEST)
    outcomes = xp.concatenate([log_probs, xp.log(xp.clip(others, LEAST, 1.0))], 1)
    floored = xp.clip(outcomes, -LARGEST, 0.0)
    entropy = -(xp.concatenate([probs, others], 1) * floored).sum(1)
    return xp.stack([log_probs[:, 0] - xp.log(rest), margin, entropy], 1)


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
            the log-odds, share of the images that is answered, share that is answered wrongly, and cost as a share of
            the cost without giving up.
    """

    exits: np.ndarray
    deferred: np.ndarray
    forecasts: np.ndarray
    nodes: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certainty) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.nodes.tobytes())

    @cached_property
    def gives_up(self) -> bool:
        """Whether images may be given up early."""
        return not np.isnan(self.forecasts).all()

    def log_odds(self, point: OperatingPoint, last: np.ndarray, gave_up: np.ndarray | None, summary: Array) -> Array:
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


def probability(log_odds: Array) -> Array:
    """The confidence of log-odds, 0 to 1, of the same shape and dtype."""
    xp = library(log_odds)
    return 1 / (1 + xp.exp(-log_odds))


def as_log_odds(share: float) -> float:
    """The log-odds of a share between 0 and 1."""
    assert is_number(share, 0, 1)
    with np.errstate(divide="ignore"):
        return float(np.log(share) - np.log1p(-share))


def _linear(weights: np.ndarray, statistics: Array) -> Array:
    xp = library(statistics)
    placed: Any = weights if xp is np else xp.from_numpy(weights).to(statistics.device, non_blocking=True)
    return xp.clip(placed[:, 0] + (placed[:, 1:] * statistics).sum(1), -LARGEST, LARGEST)


def _as_text(row: Sequence[float]) -> str:
    return " ".join(f"{value:.{DIGITS}g}" for value in row)


def _from_text(row: str) -> list[float]:
    return [float(value) for value in row.split()]
