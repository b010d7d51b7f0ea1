"""Tunes the thresholds of confidence cascades of two or three experts by enumeration: what one would write by hand."""

from __future__ import annotations

import numpy as np
import torch

from ...evaluation.intervals import non_dominated
from ...routing.evidence import TOP_PROBABILITY
from .curves import Curve, path_costs
from .outputs import FoldedOutputs, Members


STEPS = {2: 97, 3: 33}
"""Number of quantiles that each threshold is chosen among, by length of the cascade."""


def fit_thresholds(outputs: FoldedOutputs, members: Members) -> Curve:
    """Tune thresholds on the largest probability of the mixture: a cascade defers below them.

    All combinations of quantiles are counted at once. Thresholds are chosen by the accuracy on the images that tune
    them, as is usual, so that this accuracy is optimistic; the mixing weights are those of other folds.

    Args:
        outputs: outputs for the images of the fit.
        members: a chain of two or three experts.
    """
    stages = len(members) - 1
    results = [outputs.result(members[: count + 1])[0].numpy() for count in range(len(members))]
    confidence = [_confidence(outputs, members[: count + 1]) for count in range(stages)]
    steps = STEPS[len(members)]
    thresholds = [
        np.unique(np.append(np.quantile(values[outputs.judged.numpy()], np.linspace(0, 1, steps)), np.inf))
        for values in confidence
    ]
    # An image of level b defers at all thresholds with an index above b.
    levels = [np.searchsorted(t, v, side="right") - 1 for t, v in zip(thresholds, confidence, strict=True)]
    judged = outputs.judged.numpy()
    costs = path_costs(outputs, outputs.costs.objective, members)
    accuracy, cost = (
        _sum_over_exits([value[judged] for value in values], [level[judged] for level in levels], thresholds)
        / outputs.samples
        for values in (results, [np.full(len(judged), one) for one in costs])
    )
    chosen = non_dominated(cost.ravel(), accuracy.ravel())[::-1]
    tuned = np.stack([t[i] for t, i in zip(thresholds, np.unravel_index(chosen, cost.shape), strict=True)])
    weight = torch.zeros(stages, len(chosen), outputs.of_images.width)
    weight[..., TOP_PROBABILITY] = -1.0
    # No probability is above 2.
    bias = torch.from_numpy(np.minimum(tuned, 2.0)).float()
    exits = []
    for values in (confidence, [_confidence(outputs, members[: count + 1], saved=True) for count in range(stages)]):
        exits.append(torch.full((len(judged), len(chosen)), stages, dtype=torch.int8))
        for stage in reversed(range(stages)):
            exits[-1][torch.from_numpy(values[stage][:, None]) >= bias[stage]] = stage
    return Curve.of_exits(outputs, members, "thresholds", (weight, bias), (exits[0], exits[1]))


def _confidence(outputs: FoldedOutputs, ran: Members, saved: bool = False) -> np.ndarray:
    """The largest probability of the mixture for each image: float32 (n,)."""
    known = outputs.evidence(ran)
    column = (known.saved if saved else known.out_of_fold)[..., TOP_PROBABILITY].cpu().double()
    if not known.std[TOP_PROBABILITY].isfinite():
        return np.full(column.numel(), known.mean[TOP_PROBABILITY].item(), dtype=np.float32)
    return (column * known.std[TOP_PROBABILITY] + known.mean[TOP_PROBABILITY]).float().flatten().numpy()


def _sum_over_exits(values: list[np.ndarray], levels: list[np.ndarray], thresholds: list[np.ndarray]) -> np.ndarray:
    """Sum over images of a value that depends on the stage at which they exit, for all combinations of thresholds.

    Args:
        values: for each stage (n,).
        levels: for each stage but the last int (n,), the index of the highest threshold that an image reaches.
        thresholds: for each stage but the last (T,), rising; every image reaches the first.

    Returns:
        float64 (T,) or (T, T).
    """
    shape = tuple(len(t) for t in thresholds)
    at = np.ravel_multi_index(tuple(levels), shape)
    total = np.zeros(shape)
    for stage, value in enumerate(values):
        table = np.bincount(at, weights=value.astype(float), minlength=int(np.prod(shape))).reshape(shape)
        for axis in range(len(shape)):
            # It exits at `stage`: it deferred at all stages before, and not here.
            before = np.cumsum(table, axis) - table
            if axis < stage:
                table = before
            elif axis == stage:
                table = table.sum(axis, keepdims=True) - before
            else:
                table = np.broadcast_to(table.sum(axis, keepdims=True), table.shape)
        total = total + table
    return total
