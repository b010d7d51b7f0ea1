"""Outputs of a pool, to fit cascades to and to judge them on: answers and evidence after each prefix of a chain."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from scipy.optimize import minimize

from ...data.splits import assign_folds
from ...predictions.predictions import Predictions
from ...routing.evidence import CONFIDENCE, compute_evidence
from ...routing.mixing import log_softmax
from ...utils.distributed import one_thread


EVIDENCE = CONFIDENCE
"""What the heads of cascades read."""
MAX_WEIGHT, MIN_SINGLE_WEIGHT = 3.0, 1e-3
WEIGHT_DECAY = 1e-3
MIXING_ROWS = 20_000
"""Largest number of images to fit mixing weights to; a handful of numbers gains nothing from more."""
ROWS_AT_ONCE = 4096
CACHED_BYTES = 2**30
"""Size of a cache of evidence."""

T = TypeVar("T")
Members = tuple[int, ...]
"""Pool indices, rising."""


class Recent(Generic[T]):
    """The results that were asked for last. Unlike `lru_cache` around a method it holds no reference to its owner, so
    that the owner's memory is free as soon as nothing else uses it.

    Args:
        size: how many are kept, at least one.
    """

    def __init__(self, size: int):
        self._size = max(size, 1)
        self._kept: OrderedDict[Any, T] = OrderedDict()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """The result of a key, which is made if it is not kept."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class PoolOutputs:
    """Outputs of a pool for n images.

    Args:
        predictions: predictions for the images.
        rows: int64 (n,), the images in the order in which they are wanted; default: all.
    """

    def __init__(self, predictions: Predictions, rows: torch.Tensor | None = None):
        rows = torch.arange(len(predictions)) if rows is None else rows
        self.tail, self.costs, self.num_experts = predictions.tail, predictions.costs, predictions.num_experts
        self.log_probs = [
            torch.cat([log_softmax(predictions.logits(expert, part), self.tail) for part in rows.split(ROWS_AT_ONCE)])
            for expert in range(self.num_experts)
        ]
        self.votes = torch.stack([log_probs.argmax(1) for log_probs in self.log_probs], 1)
        self.targets = predictions.target_columns[rows]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def right(self) -> torch.Tensor:
        """bool (n, N), whether each expert alone is right."""
        return self.votes == self.targets.unsqueeze(1)

    @property
    def width(self) -> int:
        """Number of columns of the evidence, E."""
        return EVIDENCE.width(self.num_experts, 0)

    @property
    def parts(self) -> list[slice]:
        """All images, in parts that limit the memory of what is computed over all labels."""
        return [slice(at, min(at + ROWS_AT_ONCE, len(self))) for at in range(0, len(self), ROWS_AT_ONCE)]

    def answer(self, ran: Members, weights: torch.Tensor | None, rows: slice) -> torch.Tensor:
        """The current result of some images after some experts: (b, C).

        Args:
            ran: the experts.
            weights: mixing weights, (M,) or for each image of all (n, M); None: the last one answers alone.
            rows: the images.
        """
        if weights is None:
            return self.log_probs[ran[-1]][rows]
        by_row = weights.unsqueeze(0) if weights.ndim == 1 else weights[rows]
        mixed = by_row[:, :1] * self.log_probs[ran[0]][rows]
        for position, expert in enumerate(ran[1:], 1):
            mixed.addcmul_(by_row[:, position : position + 1], self.log_probs[expert][rows])
        return mixed

    def answers(self, ran: Members, weights: torch.Tensor | None) -> torch.Tensor:
        """int64 (n,), the column of the label that each image is given after some experts; see `answer`."""
        return torch.cat([self.answer(ran, weights, rows).argmax(1) for rows in self.parts])

    def evidence(self, ran: Members, weights: torch.Tensor | None) -> torch.Tensor:
        """What is known of each image after some experts: float32 (n, E); see `answer`."""
        has_run = torch.zeros(1, self.num_experts, dtype=torch.bool)
        has_run[:, list(ran)] = True
        evidence = torch.empty(len(self), self.width)
        for rows in self.parts:
            answer, seen = self.answer(ran, weights, rows), has_run.expand(rows.stop - rows.start, -1)
            evidence[rows] = compute_evidence(EVIDENCE, answer, self.votes[rows], seen, tail=self.tail)
        return evidence


class FoldEvidence(NamedTuple):
    """Evidence of the images of a fit after some experts, in folds.

    Attributes:
        out_of_fold: float32 (k, m, E + 1), standardised, with a column of ones, with the mixing weights of each fold.
        saved: the same with the saved mixing weights.
        mean, std: float64 (E,).
        gram: float64 (k, E + 1, E + 1), products of the columns over the other folds.
    """

    out_of_fold: torch.Tensor
    saved: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    gram: torch.Tensor


class FoldedOutputs:
    """Outputs of a pool for the images of a fit, in folds: what is fitted for a fold is fitted to the others.

    Args:
        predictions: predictions for the images.
        folds: number of folds, k; each has m images, padded.
        seed: random seed of the folds.
        mixing: whether answers mix the outputs of the experts that have run; otherwise the last one answers alone.
        judged: int64, the images whose out-of-fold decisions are counted; default: all.
        reference: the expert that dispatchers are compared with; default: `predictions.reference`.
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
        reference: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self.folds, self.mixing, self.device = folds, mixing, device
        rows = assign_folds(predictions.targets, folds, seed, predictions.copies)
        self.fold_size = rows.shape[1]
        rows = rows.flatten()
        # Folds are padded to one length; padding has no evidence and is never counted.
        self.filled, slots = rows >= 0, rows.clamp_min(0)
        self.of_images = PoolOutputs(predictions, slots)
        self.costs, self.num_experts = predictions.costs, predictions.num_experts
        is_judged = torch.ones(len(predictions), dtype=torch.bool)
        if judged is not None:
            is_judged = torch.zeros_like(is_judged).index_fill_(0, judged, True)
        self.judged = is_judged[slots] & self.filled
        self.samples = int(self.judged.sum())
        reference = predictions.reference if reference is None else reference
        self.reference_right = self.of_images.right[:, reference]
        self._mixing: dict[Members, torch.Tensor] = {}
        self._results: dict[Members, tuple[torch.Tensor, torch.Tensor]] = {}
        bytes_each = 8 * rows.numel() * (self.of_images.width + 1)
        self._evidence: Recent[FoldEvidence] = Recent(CACHED_BYTES // bytes_each)
        everyone = tuple(range(self.num_experts))
        weights = self._by_row(everyone)
        # The probability that the whole pool gives to every label.
        self._belief = torch.cat(
            [
                log_softmax(self.of_images.answer(everyone, weights, part), self.of_images.tail).exp()
                for part in self.of_images.parts
            ]
        )

    def mixing_weights(self, ran: Members) -> torch.Tensor:
        """Weights of the experts that have run, fitted by likelihood for each fold on the others: float32 (k, M)."""
        if ran not in self._mixing:
            per_fold = min(self.fold_size, -(-MIXING_ROWS // self.folds))
            used = torch.arange(self.folds * self.fold_size).view(self.folds, -1)[:, :per_fold]
            fitted = []
            for fold in range(self.folds):
                rows = used[torch.arange(self.folds) != fold].flatten()
                rows = rows[self.filled[rows]]
                log_probs = [self.of_images.log_probs[expert][rows] for expert in ran]
                fitted.append(fit_mixing_weights(log_probs, self.of_images.targets[rows], self.of_images.tail))
            self._mixing[ran] = torch.stack(fitted)
        return self._mixing[ran]

    def saved_weights(self, ran: Members) -> torch.Tensor | None:
        """The mixing weights of an operating point, the mean of those of the folds: float32 (M,); None if nothing is
        mixed."""
        return self.mixing_weights(ran).mean(0) if self.mixing else None

    def _by_row(self, ran: Members) -> torch.Tensor:
        """The mixing weights for each image: (n, M)."""
        return self.mixing_weights(ran).repeat_interleave(self.fold_size, 0)

    def result(self, ran: Members) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether the answer is right if an image exits after some experts, bool (n,), and the probability that the
        whole pool gives to that answer, float32 (n,)."""
        if ran not in self._results:
            answers = self.of_images.answers(ran, self._by_row(ran) if self.mixing else None)
            belief = self._belief.gather(1, answers.unsqueeze(1)).squeeze(1)
            self._results[ran] = answers == self.of_images.targets, belief
        return self._results[ran]

    def evidence(self, ran: Members) -> FoldEvidence:
        """The evidence after some experts."""
        return self._evidence.get(ran, lambda: self._make_evidence(ran))

    def _make_evidence(self, ran: Members) -> FoldEvidence:
        out_of_fold = self.of_images.evidence(ran, self._by_row(ran) if self.mixing else None)
        count, filled = int(self.filled.sum()), self.filled.unsqueeze(1)
        mean = _total(out_of_fold * filled) / count
        std = (_total(((out_of_fold - mean.float()) * filled) ** 2) / count).sqrt()
        # A column that never varies tells nothing, and its weight must not depend on rounding.
        std = torch.where(std < 1e-6, torch.inf, std)

        def standardised(evidence: torch.Tensor) -> torch.Tensor:
            evidence = torch.cat([(evidence - mean.float()) / std.float(), torch.ones(len(evidence), 1)], 1) * filled
            return evidence.view(self.folds, self.fold_size, -1).to(self.device)

        saved = standardised(self.of_images.evidence(ran, self.saved_weights(ran))) if self.mixing else None
        out_of_fold = standardised(out_of_fold)
        gram = sum(torch.bmm(x.mT, x).cpu().double() for x in out_of_fold.split(ROWS_AT_ONCE, 1))
        assert isinstance(gram, torch.Tensor)
        return FoldEvidence(out_of_fold, out_of_fold if saved is None else saved, mean, std, gram.sum(0) - gram)


def _total(values: torch.Tensor) -> torch.Tensor:
    """Sum over rows in float64, in an order that does not depend on the number of threads."""
    return torch.from_numpy(values.numpy().sum(0, dtype=np.float64))


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
