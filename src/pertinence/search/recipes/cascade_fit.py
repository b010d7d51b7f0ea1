"""Fits cascades on cached predictions: mixing weights by likelihood, then ridge heads backwards over the stages.

The mixing weights and heads used for an image are fitted to the labels of the other folds; labels of its own fold
affect those heads only through the targets of earlier stages. The knots and the scale of evidence use no labels, and
are shared between folds. One fit gives a whole curve, with one dispatcher for each lambda: its accuracy is an
out-of-fold estimate; its cost, which needs no labels, is that of the saved heads themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import minimize

from ...data.splits import assign_folds
from ...predictions.predictions import Predictions
from ...routing.evidence import MIX, mix_evidence
from ...routing.front import OperatingPoint, Stage
from ...routing.heads import Head
from ...routing.mixing import log_softmax
from ...utils.distributed import one_thread


PRICES = 10 ** np.linspace(-2.8, 0.8, 337)
"""Values of lambda: the gain of accuracy (0 to 1) that is worth one run of the largest expert."""
MAX_WEIGHT, MIN_SINGLE_WEIGHT = 3.0, 1e-3
WEIGHT_DECAY = 1e-3
MIXING_ROWS = 20_000
"""Largest number of images to fit mixing weights to; a handful of numbers gains nothing from more."""
ROWS_AT_ONCE = 4096
TOLERATED_MISMATCH, TOLERATED_IMAGES = 0.01, 25
"""How much, relatively or in images, the cost of the saved heads may differ from that of the fold heads, whose
decisions estimate the accuracy. If evidence has few distinct values, whole groups of images change their route at
once, and the two may differ so much that a dispatcher would wrongly look both accurate and cheap."""
CACHED_BYTES = 2**30
"""Size of the cache of evidence between fits."""


@dataclass(frozen=True)
class CascadeSettings:
    """The settings of one fit, except lambda: the members, which are searched, and constants found by experiment.

    Attributes:
        members: pool indices, rising; images that exit nowhere else exit at the last.
        blend: weight of the label in the utility of an answer; the rest is the weight of the pool's belief in it.
        ridge: strength of the heads' penalty, for standardised evidence.
        scale: factor of the fitted mixing weights.
    """

    members: tuple[int, ...]
    blend: float = 0.3
    ridge: float = 100.0
    scale: float = 1.0


@dataclass(frozen=True)
class CascadeCurve:
    """One fit: a dispatcher for every lambda at which the saved heads agree with the estimate, and its estimated
    figures.

    Attributes:
        prices: int64 (L,), rising, indices of lambda.
        accuracy: float64 (L,), accuracy of out-of-fold decisions.
        costs: for each unit float64 (L,), mean cost per image with the saved heads.
        objective: the unit of cost that lambda refers to.
        shares: float64 (L, N), share of images on which each expert ran last, with the saved heads.
        wins, losses: int64 (L,), number of images that only the out-of-fold decisions get right, and that only the
            largest expert gets right.
        samples: number of evaluated images.
        point: operating point without a name, with members and stages.
        weight: float32 (stages, L, E), mean of the fold heads, for deferring.
        bias: float32 (stages, L).
        knots: float32 (stages, 8).
    """

    prices: np.ndarray
    accuracy: np.ndarray
    costs: dict[str, np.ndarray]
    objective: str
    shares: np.ndarray
    wins: np.ndarray
    losses: np.ndarray
    samples: int
    point: OperatingPoint
    weight: torch.Tensor
    bias: torch.Tensor
    knots: torch.Tensor

    @property
    def cost(self) -> np.ndarray:
        """float64 (L,), in the unit of the objective."""
        return self.costs[self.objective]

    def heads(self, index: int) -> tuple[Head, ...]:
        """The heads for one lambda: exit scores 0, the next member its predicted gain, any later one -1."""
        num_experts = self.shares.shape[1]
        heads = []
        for stage, following in enumerate(self.point.members[1:]):
            weight = torch.zeros(num_experts, self.weight.shape[2])
            bias = torch.full((num_experts,), -1.0)
            bias[self.point.members[stage]] = 0.0
            weight[following], bias[following] = self.weight[stage, index], self.bias[stage, index]
            heads.append(Head(weight, bias, self.knots[stage]))
        return tuple(heads)


class CascadeFitter:
    """Fits many cascades on the same images.

    Args:
        predictions: predictions for the search images.
        folds: number of folds, k.
        seed: random seed of the folds.
        mixing: whether answers mix the outputs of the experts that have run; otherwise the last one answers alone.
        judged: int64, the images whose out-of-fold decisions are counted; default: all.
        device: device to fit heads on.
    """

    @one_thread()
    def __init__(
        self,
        predictions: Predictions,
        folds: int,
        seed: int,
        mixing: bool = True,
        judged: torch.Tensor | None = None,
        device: torch.device | str = "cpu",
    ):
        self.device, self.folds, self.mixing = device, folds, mixing
        self.tail = predictions.tail
        self.costs, self.num_experts = predictions.costs, predictions.num_experts
        rows = assign_folds(predictions.targets, folds, seed, predictions.copies)
        self.fold_size = rows.shape[1]
        rows = rows.flatten()
        # Folds are padded to one length; padding has no evidence and is never counted.
        self._filled = rows >= 0
        slots = rows.clamp_min(0)
        self._log_probs = [
            torch.cat([log_softmax(predictions.logits(e, part), self.tail) for part in slots.split(ROWS_AT_ONCE)])
            for e in range(self.num_experts)
        ]
        self._votes = torch.stack([log_probs.argmax(1) for log_probs in self._log_probs], 1)
        self._targets = predictions.target_columns[slots]
        is_judged = torch.ones(len(predictions), dtype=torch.bool)
        if judged is not None:
            is_judged = torch.zeros_like(is_judged).index_fill_(0, judged, True)
        self._judged = is_judged[slots] & self._filled
        self.samples = int(self._judged.sum())
        self._largest_right = self._votes[:, -1] == self._targets
        self._mixing: dict[tuple[int, ...], torch.Tensor] = {}
        bytes_each = 8 * rows.numel() * (MIX.width(self.num_experts, 0) + 1)
        self._evidence = lru_cache(max(1, CACHED_BYTES // bytes_each))(self._make_evidence)
        all_experts = tuple(range(self.num_experts))
        pool = self._mix(all_experts, self.mixing_weights(all_experts))
        # The probability that the whole pool gives to every label, computed in parts.
        self._belief = torch.cat([log_softmax(part, self.tail).exp() for part in pool.split(ROWS_AT_ONCE)])
        self._answers: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def mixing_weights(self, ran: tuple[int, ...]) -> torch.Tensor:
        """Weights of the experts that have run, fitted by likelihood for each fold on the others: float32 (k, M)."""
        if ran not in self._mixing:
            per_fold = min(self.fold_size, -(-MIXING_ROWS // self.folds))
            used = torch.arange(self.folds * self.fold_size).view(self.folds, -1)[:, :per_fold]
            fitted = []
            for fold in range(self.folds):
                rows = used[torch.arange(self.folds) != fold].flatten()
                rows = rows[self._filled[rows]]
                log_probs = [self._log_probs[expert][rows] for expert in ran]
                fitted.append(fit_mixing_weights(log_probs, self._targets[rows], self.tail))
            self._mixing[ran] = torch.stack(fitted)
        return self._mixing[ran]

    @one_thread()
    def fit(self, settings: CascadeSettings) -> CascadeCurve:
        """Fit the heads of one cascade for all values of lambda and all folds at once."""
        members, scale = settings.members, settings.scale if self.mixing else 1.0
        right, belief = self._answers_of(members)
        utility = settings.blend * right.float() + (1 - settings.blend) * belief
        prices = torch.from_numpy(PRICES).float().to(self.device)
        objective = self.costs.objective
        steps = self.costs.chain(objective, members)

        utility = utility.to(self.device).view(self.folds, self.fold_size, -1)
        # For every image and lambda: the value of the rest of the cascade, and the stage at which the image exits,
        # out-of-fold and with the saved heads, (k, m, L).
        value = utility[..., -1:].repeat(1, 1, len(prices))
        ends = torch.full(value.shape, len(members) - 1, dtype=torch.int8, device=self.device)
        saved_ends = ends.clone()
        heads = []
        for stage in reversed(range(len(members) - 1)):
            out_of_fold, saved, mean, std, knots = self._evidence(members[: stage + 1], scale)
            fee = prices * (steps[stage + 1] / self.costs.of_experts[-1])
            now = utility[..., stage : stage + 1]
            tensors = (out_of_fold, saved, value, now, ends, saved_ends)
            parts = list(zip(*(t.split(ROWS_AT_ONCE, 1) for t in tensors), strict=True))
            weights = self._solve(((x, v.sub_(fee) - answer) for x, _, v, answer, _, _ in parts), settings.ridge)
            by_fold, averaged = (w.float().to(self.device) for w in (weights, weights.mean(0)))
            for x, x_saved, v, answer, end, saved_end in parts:
                goes_on = torch.bmm(x, by_fold) > 0
                v.copy_(torch.where(goes_on, v, answer))
                end.masked_fill_(~goes_on, stage)
                saved_end.masked_fill_(x_saved @ averaged <= 0, stage)
            heads.append((weights.mean(0), mean, std, knots))
        heads.reverse()
        weight = [(w[:-1] / std.unsqueeze(1)).T for w, _, std, _ in heads]
        bias = [w[-1] - part @ mean for part, (w, mean, _, _) in zip(weight, heads, strict=True)]
        counted = self._count(ends.flatten(0, 1), right)
        shares, estimated = (self._shares(e.flatten(0, 1), members) for e in (saved_ends, ends))
        spent = {unit: shares[:, list(members)] @ self._path_costs(unit, members) for unit in self.costs.values}
        expected = estimated[:, list(members)] @ self._path_costs(objective, members)
        mismatch = np.abs(expected / spent[objective] - 1)
        tolerated = max(TOLERATED_MISMATCH, TOLERATED_IMAGES / self.samples, mismatch.min())
        kept = np.flatnonzero(mismatch <= tolerated)
        return CascadeCurve(
            prices=kept,
            **{name: values[kept] for name, values in counted.items()},
            costs={unit: values[kept] for unit, values in spent.items()},
            objective=objective,
            shares=shares[kept],
            samples=self.samples,
            point=self._point(members, scale),
            weight=torch.stack(weight).float().cpu()[:, kept],
            bias=torch.stack(bias).float().cpu()[:, kept],
            knots=torch.stack([knots for *_, knots in heads]).cpu(),
        )

    def _point(self, members: tuple[int, ...], scale: float) -> OperatingPoint:
        stages = []
        for position, member in enumerate(members if self.mixing else members[:-1]):
            weights = None
            if self.mixing:
                weights = tuple((self.mixing_weights(members[: position + 1]).mean(0) * scale).tolist())
            stages.append(Stage(member, MIX.name, weights, MIX.version))
        return OperatingPoint("", "cascade", members, tuple(stages))

    def _mix(self, ran: tuple[int, ...], weights: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """The mixture of the experts that have run, with the weights (k, M) of each image's fold."""
        by_row = weights.repeat_interleave(self.fold_size, 0)[rows]
        mixed = by_row[:, :1] * self._log_probs[ran[0]][rows]
        for position, expert in enumerate(ran[1:], 1):
            mixed.addcmul_(by_row[:, position : position + 1], self._log_probs[expert][rows])
        return mixed

    def _answers_of(self, members: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether the answer is right if an image exits at each stage, and the pool's belief in it: (n, M) each."""
        if members not in self._answers:
            columns = [self._votes[:, members[0]]]
            for count in range(2, len(members) + 1):
                ran = members[:count]
                columns.append(
                    self._mix(ran, self.mixing_weights(ran)).argmax(1) if self.mixing else self._votes[:, ran[-1]]
                )
            answers = torch.stack(columns, 1)
            self._answers[members] = answers == self._targets.unsqueeze(1), self._belief.gather(1, answers)
        return self._answers[members]

    def _make_evidence(
        self, ran: tuple[int, ...], scale: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Standardised evidence with a column of ones (k, m, E + 1), with out-of-fold mixing weights and with saved
        ones; its mean and std (E,), and the knots (8,)."""
        by_fold = self.mixing_weights(ran) * scale
        averaged = by_fold.mean(0, keepdim=True).expand_as(by_fold)
        has_run = torch.zeros(1, self.num_experts, dtype=torch.bool)
        has_run[:, list(ran)] = True
        total = self.folds * self.fold_size
        parts = [slice(at, min(at + ROWS_AT_ONCE, total)) for at in range(0, total, ROWS_AT_ONCE)]

        def answer(weights: torch.Tensor, rows: slice) -> torch.Tensor:
            return self._mix(ran, weights, rows) if self.mixing else self._log_probs[ran[-1]][rows]

        knots = MIX.fit(torch.cat([answer(by_fold, rows)[self._filled[rows]] for rows in parts[:5]]), self.tail)

        def evidence_of(weights: torch.Tensor) -> torch.Tensor:
            evidence = torch.ones(total, MIX.width(self.num_experts, 0) + 1)
            for rows in parts:
                mixed, seen = answer(weights, rows), has_run.expand(rows.stop - rows.start, -1)
                evidence[rows, :-1] = mix_evidence(mixed, self._votes[rows], seen, knots, self.tail)
            return evidence.mul_(self._filled.unsqueeze(1))

        out_of_fold, count = evidence_of(by_fold), int(self._filled.sum())
        mean = self._reduce(out_of_fold[:, :-1]) / count
        centred = (out_of_fold[:, :-1] - mean.float()) * self._filled.unsqueeze(1)
        std = (self._reduce(centred**2) / count).sqrt().clamp_min(1e-6)

        def standardised(evidence: torch.Tensor) -> torch.Tensor:
            evidence[:, :-1].sub_(mean.float()).div_(std.float())
            return evidence.mul_(self._filled.unsqueeze(1)).view(self.folds, self.fold_size, -1).to(self.device)

        out_of_fold = standardised(out_of_fold)
        return out_of_fold, standardised(evidence_of(averaged)) if self.mixing else out_of_fold, mean, std, knots

    @staticmethod
    def _reduce(values: torch.Tensor) -> torch.Tensor:
        """Sum over rows in float64, in an order that does not depend on the number of threads."""
        return torch.from_numpy(values.numpy().sum(0, dtype=np.float64))

    def _solve(self, parts: Iterable[tuple[torch.Tensor, torch.Tensor]], ridge: float) -> torch.Tensor:
        """Ridge regression for each fold on the others, of targets (k, m', L) on evidence (k, m', E), given in parts:
        float64 (k, E, L)."""
        gram = moments = torch.zeros((), dtype=torch.float64)
        for x, y in parts:
            gram = gram + torch.bmm(x.mT, x).cpu().double()
            moments = moments + torch.bmm(x.mT, y).cpu().double()
        penalty = ridge * torch.eye(gram.shape[1], dtype=torch.float64)
        penalty[-1, -1] = 0.0
        return torch.linalg.solve(gram.sum(0) - gram + penalty, moments.sum(0) - moments)

    def _count(self, ends: torch.Tensor, right: torch.Tensor) -> dict[str, np.ndarray]:
        """Accuracy, wins and losses if images exit at the stages `ends` (n, L)."""
        counted = []
        for stage in range(right.shape[1]):
            ours = right[:, stage]
            counted.append(self._sum([ours, ours & ~self._largest_right, ~ours & self._largest_right], ends, stage))
        correct, wins, losses = np.stack(counted, 1).sum(1)
        return {
            "accuracy": correct / self.samples,
            "wins": wins.astype(np.int64),
            "losses": losses.astype(np.int64),
        }

    def _path_costs(self, unit: str, members: tuple[int, ...]) -> np.ndarray:
        """Cost of an image that exits after each member, including the heads on its path: float64 (M,)."""
        heads = np.minimum(np.arange(1, len(members) + 1), len(members) - 1)
        size = self.num_experts * MIX.width(self.num_experts, 0)
        return np.cumsum(self.costs.chain(unit, members)) + heads * self.costs.of_head(unit, size)

    def _shares(self, ends: torch.Tensor, members: tuple[int, ...]) -> np.ndarray:
        """Share of the images on which each expert ran last, if they exit at the stages `ends` (n, L): (L, N)."""
        everything = [torch.ones_like(self._judged)]
        ended = np.concatenate([self._sum(everything, ends, stage) for stage in range(len(members))])
        shares = np.zeros((len(PRICES), self.num_experts))
        shares[:, list(members)] = ended.T / self.samples
        return shares

    def _sum(self, kinds: list[torch.Tensor], ends: torch.Tensor, stage: int) -> np.ndarray:
        """How many counted images of each kind, bool (n,) each, exit at a stage: (kinds, L)."""
        # Sums of zeros and ones are exact in float32 in any order, up to 2^24 images.
        indicators = (torch.stack(kinds) & self._judged).float().to(self.device)
        parts = zip(indicators.split(ROWS_AT_ONCE, 1), ends.split(ROWS_AT_ONCE), strict=True)
        return sum(kind @ (end == stage).float() for kind, end in parts).cpu().double().numpy()


def fit_mixing_weights(log_probs: Sequence[torch.Tensor], targets: torch.Tensor, tail: int = 1) -> torch.Tensor:
    """Fit the weights of a log-linear mixture by maximum likelihood.

    Args:
        log_probs: log-probabilities of M experts, (n, C) each.
        targets: int64 (n,), labels.
        tail: how many labels the last column stands for.

    Returns:
        float32 (M,), each in [0, 3].
    """
    stacked = torch.stack(list(log_probs))
    at_target = stacked.gather(2, targets.expand(len(stacked), -1).unsqueeze(2)).squeeze(2)
    multiplicity = torch.ones(stacked.shape[2]).index_fill_(0, torch.tensor(stacked.shape[2] - 1), float(tail))

    def mean(
        values: torch.Tensor,
    ) -> np.ndarray:  # with NumPy on one thread, so that the number of torch's threads does not matter
        return values.numpy().mean(-1, dtype=np.float64)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = torch.zeros(stacked.shape[1:])
        for weight, part in zip(weights.tolist(), stacked, strict=True):
            mixed.add_(part, alpha=weight)
        normalised = log_softmax(mixed, tail)
        chosen = normalised.gather(1, targets.unsqueeze(1)).squeeze(1)
        belief = normalised.exp() * multiplicity
        slopes = np.stack([mean((belief * part).sum(1) - own) for part, own in zip(stacked, at_target, strict=True)])
        return -mean(chosen) + WEIGHT_DECAY * weights @ weights, slopes + 2 * WEIGHT_DECAY * weights

    # With weight zero a single expert would predict nothing.
    least = MIN_SINGLE_WEIGHT if len(stacked) == 1 else 0.0
    start = np.full(len(stacked), 1 / len(stacked))
    bounds = [(least, MAX_WEIGHT)] * len(stacked)
    # The loss is computed in float32, so that a finer tolerance would gain nothing.
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-7})
    return torch.from_numpy(found.x).float()
