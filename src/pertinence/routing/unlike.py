"""Images unlike the search images (out of distribution): a conformal p-value of each, and what is done with it.

Entropy costs nothing, as it is computed from the answer itself. Energy (Liu et al. 2020) and Mahalanobis distances of
the logits of the experts that ran detected no more; see `docs/unlike.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..utils.errors import MALFORMED, PertinenceError, explain, shown
from ..utils.validation import is_number, is_whole
from .mixing import Array, library, log_softmax


IGNORE, REFERENCE, ABSTAIN = "ignore", "reference", "abstain"
ACTIONS = (IGNORE, REFERENCE, ABSTAIN)
"""What is done with an image that is unlike the search images: nothing, the reference expert answers, or no answer is
given."""
MAX_KEPT = 500
EXACT_RANKS, GROWTH = 20, 1.15
"""Of the search images all of the first ranks are kept, and then ranks that grow by this factor."""


def entropies(logits: Array, tail: int = 1) -> np.ndarray:
    """Entropy of the softmax of logits (b, C), in nats: float64 (b,), on the host; `tail` as in `policy.route`."""
    xp = library(logits)
    log_probs: Any = log_softmax(logits, tail)
    parts = xp.exp(log_probs) * log_probs
    if tail > 1:
        parts[..., -1] *= tail
    values = -parts.sum(-1)
    return np.asarray(values if isinstance(values, np.ndarray) else values.cpu().numpy(), dtype=np.float64)


@dataclass(frozen=True)
class SearchEntropies:
    """The entropies of the answers to the search images at one operating point, in a few numbers.

    Attributes:
        images: number of search images, n.
        values: the largest ones, falling, at the ranks of `kept_ranks(n)`.
    """

    images: int
    values: tuple[float, ...]

    @classmethod
    def of(cls, found: np.ndarray) -> SearchEntropies:
        """Keep some of all entropies, float64 (n,)."""
        falling = -np.sort(-np.asarray(found, dtype=np.float32))
        return cls(len(falling), tuple(float(f"{value:.7g}") for value in falling[kept_ranks(len(falling)) - 1]))

    def p_values(self, found: np.ndarray) -> np.ndarray:
        """Conformal p-value of each answer by its entropy, float64 (b,): (1 + k) / (1 + n), where k of the n search
        images have at least that entropy; where not all ranks are kept, rounded up to the next that is.

        For an image that is exchangeable with the search images, the probability of a p-value of at most a is at most
        a (Vovk, Gammerman and Shafer 2005, "Algorithmic learning in a random world"), but for what heads were fitted
        to these very images.
        """
        ranks = np.append(kept_ranks(self.images), self.images + 1)
        # The first kept rank whose image has a smaller entropy: all that have at least as much are before it.
        place = np.searchsorted(-np.array(self.values), -np.asarray(found), side="right")
        p_values: np.ndarray = ranks[place] / (self.images + 1)
        return p_values

    def to_dict(self) -> dict[str, Any]:
        return {"images": self.images, "values": list(self.values)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchEntropies:
        """The inverse of `to_dict`; raises `PertinenceError` if the values are malformed."""
        try:
            found = cls(values["images"], tuple(values["values"]))
        except MALFORMED as error:
            raise PertinenceError(f"`entropies` of a point is malformed ({explain(error)})") from error
        listed = found.values
        if not (
            is_whole(found.images, 1, 2**40)
            and len(listed) <= MAX_KEPT
            and all(map(is_number, listed))
            and len(listed) == len(kept_ranks(found.images))
            and list(listed) == sorted(listed, reverse=True)
        ):
            raise PertinenceError(f"`entropies` of a point must be falling numbers, got {shown(dict(values))}")
        return found


def kept_ranks(count: int) -> np.ndarray:
    """The ranks of which entropies are kept, int64, rising from 1 to at most `count`."""
    ranks = list(range(1, min(count, EXACT_RANKS) + 1))
    while len(ranks) >= EXACT_RANKS and int(ranks[-1] * GROWTH) <= count:
        ranks.append(int(ranks[-1] * GROWTH))
    return np.array(ranks, dtype=np.int64)


@dataclass(frozen=True)
class UnlikeRule:
    """What is done with images that are unlike the search images.

    Attributes:
        action: one of `ACTIONS`.
        false_alarms: share of images like the search images for which it may be done.
        reference: pool index of the reference expert.
    """

    action: str
    false_alarms: float
    reference: int

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise PertinenceError(f"ood_action={shown(self.action)} is not one of {', '.join(map(repr, ACTIONS))}")
        if not is_number(self.false_alarms, 0, 1) or not 0 < self.false_alarms < 1:
            raise PertinenceError(f"ood_false_alarms must lie between 0 and 1, got {shown(self.false_alarms)}")

    def are_unlike(self, p_values: np.ndarray) -> np.ndarray:
        """Which images are unlike the search images, bool (B,), of their p-values, float64 (B,)."""
        found: np.ndarray = p_values <= self.false_alarms
        return found

    def diverts(self, p_values: np.ndarray, ran: np.ndarray) -> np.ndarray:
        """Rows of the images that the reference expert answers: unlike the search images, and it has not run on them.

        Args:
            p_values: float64 (B,).
            ran: bool (B, N), which experts ran.
        """
        if self.action != REFERENCE:
            return np.zeros(0, dtype=np.int64)
        rows: np.ndarray = (self.are_unlike(p_values) & ~ran[:, self.reference]).nonzero()[0]
        return rows
