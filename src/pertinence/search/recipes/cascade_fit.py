"""Fits the heads of a cascade on cached predictions: ridge regressions backwards over its stages.

The mixing weights and heads used for an image are fitted to the labels of the other folds; labels of its own fold
affect those heads only through the targets of earlier stages. The scale of evidence uses no labels, and is shared
between folds. One fit gives a whole curve, with one dispatcher for each lambda: its accuracy is an out-of-fold
estimate; its cost, which needs no labels, is that of the saved heads themselves.
"""

from __future__ import annotations

import numpy as np
import torch

from ...utils.distributed import one_thread
from .curves import Curve
from .outputs import ROWS_AT_ONCE, FoldedOutputs, Members


PRICES = 10 ** np.linspace(-2.8, 0.8, 145)
"""Values of lambda: the gain of accuracy (0 to 1) that is worth one run of the most expensive expert."""
BLEND = 0.3
"""Weight of the label in the utility of an answer; the rest is the weight of the pool's belief in it."""
RIDGE = 100.0
"""Strength of the heads' penalty, for standardised evidence."""


@one_thread()
def fit_heads(outputs: FoldedOutputs, members: Members, blend: float = BLEND, ridge: float = RIDGE) -> Curve:
    """Fit the heads of one cascade for all values of lambda and all folds at once.

    Args:
        outputs: outputs for the images of the fit.
        members: the chain; images that exit nowhere else exit at its last member.
        blend, ridge: see `BLEND` and `RIDGE`.
    """
    results = [outputs.result(members[: count + 1]) for count in range(len(members))]
    utility = torch.stack([blend * right.float() + (1 - blend) * belief for right, belief in results], 1)
    utility = utility.to(outputs.device).view(outputs.folds, outputs.fold_size, -1)
    prices = torch.from_numpy(PRICES).float().to(outputs.device)
    steps = outputs.costs.chain(outputs.costs.objective, members) / outputs.costs.of_experts[-1]
    # For every image and lambda: the value of the rest of the cascade, and the stage at which the image exits,
    # out-of-fold and with the saved heads, (k, m, L).
    value = utility[..., -1:].repeat(1, 1, len(prices))
    exits = torch.full(value.shape, len(members) - 1, dtype=torch.int8, device=outputs.device)
    saved_exits = exits.clone()
    weight: list[torch.Tensor] = []
    bias: list[torch.Tensor] = []
    for stage in reversed(range(len(members) - 1)):
        known = outputs.evidence(members[: stage + 1])
        fee, now = prices * steps[stage + 1], utility[..., stage : stage + 1]
        tensors = (known.out_of_fold, known.saved, value, now, exits, saved_exits)
        parts = list(zip(*(t.split(ROWS_AT_ONCE, 1) for t in tensors), strict=True))
        moments = torch.zeros((), dtype=torch.float64)
        for x, _, v, answer, _, _ in parts:
            moments = moments + torch.bmm(x.mT, v.sub_(fee) - answer).cpu().double()
        penalty = ridge * torch.eye(known.gram.shape[1], dtype=torch.float64)
        penalty[-1, -1] = 0.0
        fitted = torch.linalg.solve(known.gram + penalty, moments.sum(0) - moments)
        by_fold, averaged = (w.float().to(outputs.device) for w in (fitted, fitted.mean(0)))
        for x, x_saved, v, answer, out, saved_out in parts:
            goes_on = torch.bmm(x, by_fold) > 0
            v.copy_(torch.where(goes_on, v, answer))
            out.masked_fill_(~goes_on, stage)
            saved_out.masked_fill_(x_saved @ averaged <= 0, stage)
        # For evidence that is not standardised.
        w = fitted.mean(0)
        weight.insert(0, (w[:-1] / known.std.unsqueeze(1)).T)
        bias.insert(0, w[-1] - weight[0] @ known.mean)
    heads = torch.stack(weight).float(), torch.stack(bias).float()
    return Curve.of_exits(outputs, members, "cascade", heads, (exits.flatten(0, 1), saved_exits.flatten(0, 1)))
