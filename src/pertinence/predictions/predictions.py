"""Predictions: the outputs of a pool on the images of a split, as the policy, the search and the reports read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch

from ..routing.costs import STEM, PoolCosts
from ..routing.metrics import ACCURACY, AGREEMENT
from ..routing.mixing import TOP_SCORES
from ..routing.policy import Outputs


MAX_DENSE_LABELS = 256
KEPT_SCORES = 20
"""Number of scores of each expert that are kept if there are more labels."""
CANDIDATES = 40
"""Number of labels that are then distinguished for each image."""
ROWS_AT_ONCE = 8192
SHOWN_ROWS = 10


@dataclass(frozen=True)
class ExpertPredictions:
    """Outputs of one expert for n images.

    Attributes:
        scores: float32, logits (n, C); or, above 256 labels, the k largest log-probabilities (n, k).
        labels: int32 (n, k), the labels of these log-probabilities; None if `scores` covers all labels.
        remainder: float32 (n,), log of the total probability of all other labels; None if `labels` is.
        features: float32 (n, F), or None if they were not requested.
        num_labels: number of labels, C.
    """

    scores: torch.Tensor
    labels: torch.Tensor | None
    remainder: torch.Tensor | None
    features: torch.Tensor | None
    num_labels: int

    @classmethod
    def keep(cls, logits: torch.Tensor, features: torch.Tensor | None = None) -> ExpertPredictions:
        """Make predictions from logits (n, C): all of them up to 256 labels, else only the largest."""
        return cls.from_tensors(
            compress(logits) | ({} if features is None else {"features": features}), logits.shape[1]
        )

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], num_labels: int) -> ExpertPredictions:
        """Make predictions from the tensors of a store."""
        labels, remainder, features = (tensors.get(key) for key in ("labels", "remainder", "features"))
        return cls(tensors["scores"], labels, remainder, features, num_labels)

    @property
    def is_cut(self) -> bool:
        return self.labels is not None

    def scores_of(self, wanted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of requested labels for some images, and of any one label that is not kept.

        The remaining probability is spread evenly over the labels that are not kept.

        Args:
            wanted: int32 (b, K), labels.
            rows: int64 (b,), images.

        Returns:
            float32 (b, K + 1).
        """
        assert self.labels is not None
        assert self.remainder is not None
        scores, labels = self.scores[rows], self.labels[rows]
        other = (self.remainder[rows] - math.log(self.num_labels - scores.shape[1])).unsqueeze(1)
        found = other.repeat(1, wanted.shape[1] + 1)
        for score, label in zip(scores.split(1, 1), labels.split(1, 1), strict=True):
            found[:, :-1] = torch.where(wanted == label, score, found[:, :-1])
        return found

    def top_labels(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """int64 (m,), the prediction of the expert for some images, or for all."""
        best = self.scores[rows].argmax(1)
        return best if self.labels is None else self.labels[rows].gather(1, best.unsqueeze(1)).squeeze(1).long()


@dataclass(frozen=True)
class Predictions:
    """Outputs of a pool for m of n images.

    Attributes:
        experts: predictions of each expert of the pool.
        labels: int64 (n,).
        costs: costs of the pool, and of the separate stem if there is one.
        rows: int64 (m,), the images that this object covers.
        candidates: int32 (n, K), the labels that any expert finds likely; None if all scores are kept. Logits then
            have K + 1 columns, the last of which stands for each of the other labels (see `tail`).
        stem: outputs of the separate stem; None if there is none.
        measure: "accuracy", or "agreement" if the labels are the predictions of the largest expert.
        skipped: rows of the split that cannot be decoded and are left out.
        cached: number of experts whose outputs were read from the cache.
        digests: int64 (n,), equal for duplicates of one image; None unless known for every image.
    """

    experts: tuple[ExpertPredictions, ...]
    labels: torch.Tensor
    costs: PoolCosts
    rows: torch.Tensor
    candidates: torch.Tensor | None = None
    stem: ExpertPredictions | None = None
    measure: str = ACCURACY
    skipped: tuple[int, ...] = ()
    cached: int = 0
    digests: torch.Tensor | None = None

    @classmethod
    def of_pool(cls, experts: Sequence[ExpertPredictions], labels: torch.Tensor, costs: PoolCosts) -> Predictions:
        """Predictions for all n images; labels int64 (n,)."""
        candidates = likely_labels(experts) if experts[0].is_cut else None
        return cls(tuple(experts), labels, costs, torch.arange(len(labels)), candidates)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_labels(self) -> int:
        """Number of labels of the experts, C."""
        return self.experts[0].num_labels

    @property
    def tail(self) -> int:
        """How many labels the last column of the logits stands for."""
        return 1 if self.candidates is None else self.num_labels - self.candidates.shape[1]

    @property
    def num_experts(self) -> int:
        return len(self.experts)

    @property
    def targets(self) -> torch.Tensor:
        """int64 (m,), the label of each image."""
        return self.labels[self.rows]

    @property
    def target_columns(self) -> torch.Tensor:
        """int64 (m,), the column of the image's label in the logits; the last if no expert finds that label likely."""
        if self.candidates is None:
            return self.targets
        match = self.candidates[self.rows] == self.targets.unsqueeze(1)
        return torch.where(match.any(1), match.int().argmax(1), match.shape[1])

    def labels_at(self, columns: torch.Tensor) -> torch.Tensor:
        """int64 (m,), the label that a column of the logits stands for, for each image; -1 where that is any of the
        labels beside the likely ones."""
        if self.candidates is None:
            return columns
        likely = torch.nn.functional.pad(self.candidates[self.rows], (0, 1), value=-1)
        return likely.gather(1, columns.unsqueeze(1)).squeeze(1).long()

    @property
    def copies(self) -> torch.Tensor | None:
        """int64 (m,), equal for duplicates of one image; None if unknown."""
        return None if self.digests is None else self.digests[self.rows]

    def without_copies(self) -> Predictions:
        """The predictions without duplicates: only distinct images are independent."""
        if self.copies is None:
            return self
        return self.subset(torch.from_numpy(np.sort(np.unique(self.copies.numpy(), return_index=True)[1])))

    def describe_skipped(self, kind: str) -> str:
        """A sentence on how many images of the split are skipped, and which."""
        rows = ", ".join(map(str, self.skipped[:SHOWN_ROWS])) + (", ..." if len(self.skipped) > SHOWN_ROWS else "")
        return f"{len(self.skipped)} of {len(self.labels)} {kind} cannot be decoded and are skipped (rows {rows})"

    @property
    def reference(self) -> int:
        """The expert that others are compared with: the most accurate one on these images, of equal ones the cheapest;
        if the labels are its predictions, the most expensive one."""
        return self.num_experts - 1 if self.measure == AGREEMENT else int(self.correct().sum(0).argmax())

    def subset(self, rows: torch.Tensor) -> Predictions:
        """The predictions for some of these images; `rows` are positions within this object."""
        return replace(self, rows=self.rows[rows])

    def agreeing(self) -> Predictions:
        """The predictions with the largest expert's predictions as labels, so that right means to agree with it."""
        return replace(self, labels=self.experts[-1].top_labels(), measure=AGREEMENT)

    def with_cost(self, unit: str, values: Sequence[float]) -> Predictions:
        """The predictions with another unit of cost as the objective.

        Args:
            unit: name of the unit.
            values: cost of each expert, and last that of the separate stem if there is one.
        """
        experts, stem = values[: len(self.experts)], values[len(self.experts) :]
        return replace(self, costs=self.costs.with_unit(unit, experts, *stem))

    def correct(self) -> torch.Tensor:
        """bool (m, N): whether each expert is right."""
        return torch.stack([expert.top_labels(self.rows) for expert in self.experts], 1) == self.targets.unsqueeze(1)

    def logits(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """Logits of an expert, not of a stem, for some images: as those of `outputs`."""
        return cast(torch.Tensor, self.outputs(expert, rows)[0])

    def outputs(self, expert: int, rows: torch.Tensor) -> Outputs:
        """Logits and features of an expert for some images, as `policy.route` needs them, without running it."""
        rows = self.rows[rows]
        if expert == STEM:
            assert self.stem is not None
            assert self.stem.features is not None
            return None, self.stem.features[rows]
        source = self.experts[expert]
        scores = source.scores[rows] if self.candidates is None else source.scores_of(self.candidates[rows], rows)
        return scores, None if source.features is None else source.features[rows]


def likely_labels(experts: Sequence[ExpertPredictions]) -> torch.Tensor:
    """The labels that a pool finds likely for each image: every expert's first, then every expert's second, and so on
    up to the fifth; then the most probable ones.

    Args:
        experts: predictions that keep only the largest scores.

    Returns:
        int32 (n, K).
    """
    num_labels = experts[0].num_labels
    count = min(max(CANDIDATES, len(experts)), num_labels - 1)
    parts = []
    for rows in torch.arange(len(experts[0].scores)).split(ROWS_AT_ONCE):
        likely = torch.zeros(len(rows), num_labels)
        for expert in experts:
            assert expert.labels is not None
            labels = expert.labels[rows].long()
            likely.scatter_add_(1, labels, expert.scores[rows].exp())
            first = labels[:, :TOP_SCORES]
            bonus = 2.0 ** torch.arange(first.shape[1], 0, -1) * len(experts)
            likely.scatter_reduce_(1, first, bonus.expand(len(rows), -1), "amax")
        parts.append(likely.topk(count).indices.int())
    return torch.cat(parts)


def compress(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors to keep of logits (n, C), see `ExpertPredictions`."""
    if logits.shape[1] <= MAX_DENSE_LABELS:
        return {"scores": logits}
    log_probs = logits.log_softmax(1)
    top, labels = log_probs.topk(KEPT_SCORES)
    rest = log_probs.scatter(1, labels, -torch.inf).logsumexp(1)
    return {"scores": top, "labels": labels.int(), "remainder": rest}
