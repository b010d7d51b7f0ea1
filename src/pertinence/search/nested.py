"""Nested cross-validation: what a front is worth on images that it was neither fitted to nor chosen by.

Fronts are fitted, and all their points are chosen, on four fifths of the search images; they are judged on the fifth
that is left out, in turn. Estimates that choose a front flatter it; these do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data.splits import assign_folds
from ..predictions.predictions import Predictions
from ..utils.distributed import one_thread
from ..utils.progress import progress_bar


SAVINGS = np.arange(100) / 100
"""Saved shares of the cost of the most expensive expert, at which fronts are compared."""
OUTER_FOLDS = 5
WINDOW = 0.15
"""Fronts are compared by the mean over savings that differ by up to this much."""
IN_AREA = SAVINGS <= 0.8 + 1e-9
"""The area of a front is its mean accuracy over these savings, up to 80 %."""
MARGIN = 0.5
"""A front other than the first one is taken where it is better by this many paired standard errors."""
ROWS_AT_ONCE = 2**16

Judgement = tuple[torch.Tensor, np.ndarray, int]
"""Whether each point of a front gets each image right, bool (n, P); the mean cost of each point, float64 (P,); and the
index of the point that is the default of the front by what it was fitted to."""
Fit = Callable[[Predictions], Callable[[Predictions], Iterable[Judgement]]]
"""Fits several fronts to images; the result judges all of them, in the same order, on others."""


@dataclass(frozen=True)
class NestedCurve:
    """What a front is worth at each saving, on images that were left out.

    Attributes:
        accuracy: float64 (S,), at each of `SAVINGS`.
        gain, error: float64 (S,), mean difference to the first front around each saving, and its paired standard
            error.
        area_gain, area_error: the same over all savings up to 80 %.
        optimism: by how much the curve flatters the default point, as the images that choose it are among those that
            draw the curve: the mean, over the folds, of the curve at the cost of the default of the others, less the
            accuracy of that default on the fold.
    """

    accuracy: np.ndarray
    gain: np.ndarray
    error: np.ndarray
    area_gain: float
    area_error: float
    optimism: float = 0.0

    @property
    def area(self) -> float:
        """Mean accuracy over savings up to 80 %."""
        return float(self.accuracy[IN_AREA].mean())


@one_thread()
def nested_curves(
    predictions: Predictions, fit: Fit, seed: int, judged: torch.Tensor | None = None, shows_progress: bool = False
) -> list[NestedCurve]:
    """The nested curve of each front that `fit` gives.

    Args:
        predictions: predictions for the search images.
        fit: see `Fit`.
        seed: random seed of the folds.
        judged: int64, the images that are counted; default: all.
        shows_progress: whether there is a progress bar.
    """
    is_judged = torch.ones(len(predictions), dtype=torch.bool)
    if judged is not None:
        is_judged = torch.zeros_like(is_judged).index_fill_(0, judged, True)
    near = np.abs(SAVINGS[:, None] - SAVINGS) <= WINDOW + 1e-9
    weights = np.column_stack([near, IN_AREA]).astype(float)
    weights /= weights.sum(0)
    # Sums over images: float64 (fronts, S), and (fronts, S + 1) for each set of weights.
    accuracy = gains = squares = np.zeros(())
    count, defaults = 0, []  # of each part: number of images, and for each front saving and accuracy of its default
    with progress_bar(OUTER_FOLDS, "Nested cross-validation", "fold", shows_progress) as bar:
        for padded in assign_folds(predictions.targets, OUTER_FOLDS, seed, predictions.copies):
            left_out = padded[padded >= 0]
            is_left_out = torch.zeros(len(predictions), dtype=torch.bool).index_fill_(0, left_out, True)
            judge = fit(predictions.subset((~is_left_out).nonzero().squeeze(1)))
            for rows in left_out[is_judged[left_out]].split(ROWS_AT_ONCE):
                if not len(rows):  # of few images none may count here
                    continue
                held = predictions.subset(rows)
                right, chosen = [], []
                for hits, costs, default in judge(held):
                    saved = 1 - costs / held.costs.of_experts[-1]
                    right.append(_along_savings(hits, saved))
                    chosen.append((saved[default], hits[:, default].double().mean().item()))
                defaults.append((len(rows), chosen))
                differences = np.stack([(one - right[0]) @ weights for one in right])
                accuracy = accuracy + np.stack([one.sum(0, dtype=np.float64) for one in right])
                gains, squares = gains + differences.sum(1), squares + (differences**2).sum(1)
                count += len(rows)
            bar.update(1)
    mean = gains / count
    error = np.sqrt(np.maximum(squares / count - mean**2, 0.0) / count)
    curves = []
    for index, (one, m, e) in enumerate(zip(accuracy / count, mean, error, strict=True)):
        found = ((images, *chosen[index]) for images, chosen in defaults)
        flattered = sum(images * (np.interp(saved, SAVINGS, one) - right) for images, saved, right in found)
        curves.append(NestedCurve(one, m[:-1], e[:-1], float(m[-1]), float(e[-1]), float(flattered / count)))
    return curves


def choose_by_cost(curves: Sequence[NestedCurve]) -> np.ndarray:
    """The front to take at each saving: int64 (S,). It is the first one, unless another is better around there by at
    least half a paired standard error."""
    gain, error = (np.stack([getattr(curve, name) for curve in curves]) for name in ("gain", "error"))
    worth = np.where((gain > 0) & (gain >= MARGIN * error), gain, -np.inf)
    worth[0] = 0.0
    return worth.argmax(0)


def _along_savings(right: torch.Tensor, saved: np.ndarray) -> np.ndarray:
    """Whether each image is right at each saving, interpolated between neighbouring points: float32 (n, S)."""
    order = np.argsort(saved, kind="stable")
    shares = np.stack([np.interp(SAVINGS, saved[order], one) for one in np.eye(len(saved))])
    return right[:, torch.from_numpy(order)].numpy().astype(np.float32) @ shares.astype(np.float32)
