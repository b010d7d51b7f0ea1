"""How far the confidence of answers can be believed: calibration, and how well it tells right from wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..routing.metrics import as_plain
from .intervals import Z


BINS = 15
DRAWS, DRAWS_AT_ONCE = 400, 50


@dataclass(frozen=True)
class Measure:
    """A figure, its standard error over draws of the images (bootstrap), and its 95 % interval."""

    value: float
    standard_error: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, value: float, error: float) -> Measure:
        """A share with its standard error."""
        return cls(value, error, (max(value - Z * error, 0.0), min(value + Z * error, 1.0)))


@dataclass(frozen=True)
class Reliability:
    """The confidence of one classifier on labelled images.

    Attributes:
        name: of the classifier.
        ece: expected calibration error: mean distance of the mean confidence from the share of right answers, over
            `BINS` bins of equally many images.
        brier: mean squared distance of the confidence from 1 of right and 0 of wrong answers.
        auroc: probability that a right answer is more confident than a wrong one; None unless there are both.
        aurc: area under the risk-coverage curve: mean share of wrong answers among the k most confident, over all k.
        bins: for each bin mean confidence and share of right answers.
        risks: shares of wrong answers if 1 %, 2 %, ..., 100 % are answered, the most confident first.
    """

    name: str
    ece: Measure
    brier: Measure
    auroc: Measure | None
    aurc: Measure
    bins: tuple[tuple[float, float], ...]
    risks: tuple[float, ...]

    @classmethod
    def of(cls, name: str, confidence: np.ndarray, right: np.ndarray) -> Reliability:
        """Measure n answers: their confidence, float (n,), and whether each is right, bool (n,)."""
        order = np.argsort(-confidence, kind="stable")
        confidence, right = confidence[order].astype(np.float64), right[order].astype(np.float64)
        own = _measures(confidence, right, np.ones((1, len(right))))[0]
        drawn = np.concatenate([_measures(confidence, right, weights) for weights in _draws(len(right))])
        errors = np.nanstd(drawn, axis=0) if np.isfinite(own).all() else np.nanstd(drawn[:, :3], axis=0)
        measures = [Measure.of(value, error) for value, error in zip(own.tolist(), errors.tolist(), strict=False)]
        parts = [part for part in np.array_split(np.arange(len(right)), BINS) if len(part)]
        bins = tuple((float(confidence[part].mean()), float(right[part].mean())) for part in reversed(parts))
        falling = (1 - right).cumsum() / np.arange(1, len(right) + 1)
        at = np.maximum(np.ceil(np.arange(1, 101) / 100 * len(right)).astype(int), 1) - 1
        ece, brier, aurc, *auroc = measures
        return cls(name, ece, brier, auroc[0] if auroc else None, aurc, bins, tuple(falling[at].tolist()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = as_plain(asdict(self))
        return values

    def __str__(self) -> str:
        known = {"ECE": self.ece, "Brier score": self.brier, "AUROC": self.auroc, "AURC": self.aurc}
        shown = [f"{key} {one.value:.4f} ± {one.standard_error:.4f}" for key, one in known.items() if one is not None]
        return f"{self.name}: {', '.join(shown)}"


def _draws(count: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, float64 (DRAWS_AT_ONCE, count)."""
    rng = np.random.default_rng(0)
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        yield rng.multinomial(count, np.full(count, 1 / count), DRAWS_AT_ONCE).astype(np.float64)


def _measures(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """ECE, Brier score, AURC and AUROC of images by falling confidence, with weights (d, n): float64 (d, 4).

    AUROC is NaN where all answers are right, or wrong; images of equal confidence count as if in order.
    """
    starts = np.unique(np.linspace(0, len(right), BINS + 1).astype(int)[:-1])
    gaps = np.add.reduceat(weights * (confidence - right), starts, axis=1)
    total = weights.sum(1)
    before, wrong = weights.cumsum(1), (weights * (1 - right)).cumsum(1)
    risks = wrong / np.maximum(before, 1e-9)
    rights, wrongs = (weights * right).sum(1), wrong[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = 1 - (weights * right * wrong).sum(1) / (rights * wrongs)
    brier = weights @ (confidence - right) ** 2
    return np.stack([np.abs(gaps).sum(1) / total, brier / total, (weights * risks).sum(1) / total, auroc], 1)
