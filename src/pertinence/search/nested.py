"""Nested cross-validation: what the front of a family is worth on images that it was neither fitted to nor chosen by.

A family is fitted, and its whole front is chosen, on four fifths of the search images; the front is judged on the
fifth that is left out, in turn. Estimates that choose a front flatter it; these do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data.splits import assign_folds
from ..evaluation.outcomes import evaluate_experts
from ..predictions.predictions import Predictions
from ..utils.distributed import one_thread
from .points import static_candidates
from .recipes.curves import Curve, HeldOut
from .recipes.families import Chain, Family, Place, fronts_of
from .recipes.outputs import ROWS_AT_ONCE, FoldedOutputs


SAVINGS = np.arange(0.0, 1.0, 0.01)
"""Saved shares of the cost of the most expensive expert, at which fronts are compared."""
OUTER_FOLDS = 5
WINDOW = 0.15
"""Fronts are compared by the mean over savings that differ by up to this much."""
AREA = 0.8
"""The area of a front is its mean accuracy over savings up to this."""
MARGIN = 0.5
"""A family other than the simplest one is taken where it is better by this many paired standard errors."""


@dataclass(frozen=True)
class NestedCurve:
    """What the front of one family is worth at each saving, on images that were left out.

    Attributes:
        accuracy: float64 (S,), at each of `SAVINGS`.
        gain, error: float64 (S,), mean difference to the first family around each saving, and its paired standard
            error.
        area_gain, area_error: the same over all savings up to 80 %.
    """

    accuracy: np.ndarray
    gain: np.ndarray
    error: np.ndarray
    area_gain: float
    area_error: float

    @property
    def area(self) -> float:
        """Mean accuracy over savings up to 80 %."""
        return float(self.accuracy[SAVINGS <= AREA + 1e-9].mean())


class Nested:
    """Compares families by nested cross-validation.

    Args:
        predictions: predictions for the search images.
        fit: prepares images for fits: the arguments of `FoldedOutputs` but the images.
        seed: random seed of the outer folds.
        judged: int64, the images that are counted; default: all.
    """

    def __init__(
        self,
        predictions: Predictions,
        fit: Callable[[Predictions], FoldedOutputs],
        seed: int,
        judged: torch.Tensor | None = None,
    ):
        self.predictions, self.fit = predictions, fit
        self._folds = assign_folds(predictions.targets, OUTER_FOLDS, seed, predictions.copies)
        self._is_judged = torch.ones(len(predictions), dtype=torch.bool)
        if judged is not None:
            self._is_judged = torch.zeros_like(self._is_judged).index_fill_(0, judged, True)

    @one_thread()
    def compare(self, families: Sequence[Family]) -> list[NestedCurve]:
        """The nested curve of each family; gains are relative to the first."""
        weights = np.column_stack([_moving_mean(), SAVINGS <= AREA + 1e-9])
        weights /= weights.sum(0)
        count, total = 0, np.zeros((len(families), len(SAVINGS)))
        gains, squares = (np.zeros((len(families), weights.shape[1])) for _ in range(2))
        for held_rows in self._folds:
            held_rows = held_rows[held_rows >= 0]
            left_out = torch.zeros(len(self.predictions), dtype=torch.bool).index_fill_(0, held_rows, True)
            train = self.predictions.subset((~left_out).nonzero().squeeze(1))
            outputs, statics = self.fit(train), static_candidates(evaluate_experts(train), train.reference)
            fitted: dict[Chain, Curve] = {}
            fronts = [fronts_of(family.fit(outputs, fitted), statics) for family in families]
            held_rows = held_rows[self._is_judged[held_rows]]
            for rows in held_rows.split(64 * ROWS_AT_ONCE):
                held = self.predictions.subset(rows)
                judge, moved = HeldOut(held), []
                for index, front in enumerate(fronts):
                    right = _along_savings(front, judge, held)
                    total[index] += right.sum(0, dtype=np.float64)
                    moved.append(right @ weights)
                count += len(rows)
                differences = np.stack(moved) - moved[0]
                gains += differences.sum(1)
                squares += (differences**2).sum(1)
        mean = gains / count
        error = np.sqrt(np.maximum(squares / count - mean**2, 0.0) / count)
        return [
            NestedCurve(accuracy, m[:-1], e[:-1], float(m[-1]), float(e[-1]))
            for accuracy, m, e in zip(total / count, mean, error, strict=True)
        ]


def choose_families(curves: Sequence[NestedCurve]) -> np.ndarray:
    """The family to take at each saving: int64 (S,). It is the first one, unless another is better there by at least
    half a paired standard error."""
    gain, error = (np.stack([getattr(curve, name) for curve in curves]) for name in ("gain", "error"))
    worth = np.where((gain > 0) & (gain >= MARGIN * error), gain, -np.inf)
    worth[0] = 0.0
    return worth.argmax(0)


def _moving_mean() -> np.ndarray:
    """For each saving the weights of the savings around it: float64 (S, S), in columns."""
    return (np.abs(SAVINGS[:, None] - SAVINGS) <= WINDOW + 1e-9).astype(float)


def _along_savings(front: Sequence[Place], judge: HeldOut, held: Predictions) -> np.ndarray:
    """Whether each image is right at each saving, interpolated between neighbouring points of a front: float32
    (n, S)."""
    by_curve: dict[int, list[Place]] = {}
    for place in front:
        by_curve.setdefault(id(place.curve), []).append(place)
    right, costs = [], []
    for places in by_curve.values():
        curve, indices = places[0].curve, [place.index for place in places]
        if curve is None:
            right.append(held.correct()[:, indices])
            costs.append(np.array(held.costs.of_experts)[indices])
        else:
            found, spent = judge.judge(curve, indices)
            right.append(found)
            costs.append(spent)
    cost = np.concatenate(costs)
    order = np.argsort(-cost, kind="stable")
    saved = 1 - cost[order] / held.costs.of_experts[-1]
    shares = np.stack([np.interp(SAVINGS, saved, one) for one in np.eye(len(saved))])
    return torch.cat(right, 1)[:, torch.from_numpy(order)].numpy().astype(np.float32) @ shares.astype(np.float32)
