"""Predictions: what a pool says about the images of a split, as the policy, the search and the reports read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..routing.costs import STEM, PoolCosts
from ..routing.metrics import ACCURACY, AGREEMENT
from ..routing.mixing import TOP_SCORES
from ..routing.policy import Outputs


MAX_DENSE_LABELS = 256
KEPT_SCORES = 20
"""Scores of each expert that are kept where there are more labels."""
CANDIDATES = 40
"""Labels of an image that a pool's answers then tell apart."""
ROWS_AT_ONCE = 8192
SHOWN_ROWS = 10


@dataclass(frozen=True)
class ExpertPredictions:
    """One expert's answers to n images.

    Attributes:
        scores: float32 (n, C) logits; or, above 256 labels, (n, k) largest log-probabilities.
        labels: int32 (n, k), the labels that these belong to; None where `scores` has them all.
        remainder: float32 (n,), log of the probability of all other labels together; None as above.
        features: float32 (n, F), or None where they were not asked for.
        num_labels: C.
    """

    scores: torch.Tensor
    labels: torch.Tensor | None
    remainder: torch.Tensor | None
    features: torch.Tensor | None
    num_labels: int

    @classmethod
    def keep(cls, logits: torch.Tensor, features: torch.Tensor | None = None) -> ExpertPredictions:
        """What is kept of logits (n, C): all of them up to 256 labels, else the largest."""
        return cls.from_tensors(
            compress(logits) | ({} if features is None else {"features": features}), logits.shape[1]
        )

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], num_labels: int) -> ExpertPredictions:
        """From the tensors of a store."""
        optional = (tensors.get(key) for key in ("labels", "remainder", "features"))
        return cls(tensors["scores"], *optional, num_labels)

    @property
    def is_cut(self) -> bool:
        return self.labels is not None

    def scores_of(self, wanted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of some labels of some images, and of one label beyond the largest.

        What was cut off is spread evenly over the labels beyond the largest.

        Args:
            wanted: int32 (b, K).
            rows: int64 (b,).

        Returns:
            float32 (b, K + 1).
        """
        scores, labels = self.scores[rows], self.labels[rows]
        other = (self.remainder[rows] - math.log(self.num_labels - scores.shape[1])).unsqueeze(1)
        found = other.repeat(1, wanted.shape[1] + 1)
        for score, label in zip(scores.split(1, 1), labels.split(1, 1), strict=True):
            found[:, :-1] = torch.where(wanted == label, score, found[:, :-1])
        return found

    def top_labels(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """int64 (m,), the label that the expert predicts, of some images or all."""
        best = self.scores[rows].argmax(1)
        return best if self.labels is None else self.labels[rows].gather(1, best.unsqueeze(1)).squeeze(1).long()


@dataclass(frozen=True)
class Predictions:
    """What a pool says about n images.

    Attributes:
        experts: one for each expert of the pool.
        labels: int64 (n,).
        costs: of the pool, and of the stem where there is one.
        rows: int64 (m,), the images that this object speaks of.
        candidates: int32 (n, K), the labels that any expert thinks likely; None where all scores are kept. Answers
            then have K + 1 columns, of which the last stands for each of the other labels (see `tail`).
        stem: what the separate stem says; None without one.
        measure: "accuracy", or "agreement" where the labels are the largest expert's answers.
        skipped: rows of the split that cannot be decoded, and of which nothing is said.
        digests: int64 (n,), the same for copies of one image; None where that is not known of every image.
    """

    experts: tuple[ExpertPredictions, ...]
    labels: torch.Tensor
    costs: PoolCosts
    rows: torch.Tensor
    candidates: torch.Tensor | None = None
    stem: ExpertPredictions | None = None
    measure: str = ACCURACY
    skipped: tuple[int, ...] = ()
    digests: torch.Tensor | None = None

    @classmethod
    def of_pool(cls, experts: Sequence[ExpertPredictions], labels: torch.Tensor, costs: PoolCosts) -> Predictions:
        """Predictions of all n images; labels int64 (n,)."""
        candidates = likely_labels(experts) if experts[0].is_cut else None
        return cls(tuple(experts), labels, costs, torch.arange(len(labels)), candidates)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_labels(self) -> int:
        """How many labels the experts have, C."""
        return self.experts[0].num_labels

    @property
    def tail(self) -> int:
        """How many labels the last column of an answer stands for."""
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
        """int64 (m,), the column of an answer that is the image's label; the last where no expert thinks it likely."""
        if self.candidates is None:
            return self.targets
        match = self.candidates[self.rows] == self.targets.unsqueeze(1)
        return torch.where(match.any(1), match.int().argmax(1), match.shape[1])

    @property
    def copies(self) -> torch.Tensor | None:
        """int64 (m,), the same for copies of one image; None where that is not known."""
        return None if self.digests is None else self.digests[self.rows]

    def without_copies(self) -> Predictions:
        """The same, with one image of those that are copies of each other: only different images are independent."""
        if self.copies is None:
            return self
        return self.subset(torch.from_numpy(np.sort(np.unique(self.copies.numpy(), return_index=True)[1])))

    def describe_skipped(self, kind: str) -> str:
        """How many images of the split are skipped, and which."""
        rows = ", ".join(map(str, self.skipped[:SHOWN_ROWS])) + (", ..." if len(self.skipped) > SHOWN_ROWS else "")
        return f"{len(self.skipped)} of {len(self.labels)} {kind} cannot be decoded and are skipped (rows {rows})"

    def subset(self, rows: torch.Tensor) -> Predictions:
        """The same of some of these images; `rows` counts within this object."""
        return replace(self, rows=self.rows[rows])

    def agreeing(self) -> Predictions:
        """The same, where right means: as the largest expert answers."""
        return replace(self, labels=self.experts[-1].top_labels(), measure=AGREEMENT)

    def with_cost(self, unit: str, values: Sequence[float]) -> Predictions:
        """The same, where another unit is the objective; of every expert, and last of the stem where there is one."""
        experts, stem = values[: len(self.experts)], values[len(self.experts) :]
        return replace(self, costs=self.costs.with_unit(unit, experts, *stem))

    def correct(self) -> torch.Tensor:
        """bool (m, N): whether each expert is right."""
        return torch.stack([expert.top_labels(self.rows) for expert in self.experts], 1) == self.targets.unsqueeze(1)

    def outputs(self, expert: int, rows: torch.Tensor) -> Outputs:
        """What `policy.route` asks for: logits and features of some images, without running the expert."""
        rows = self.rows[rows]
        if expert == STEM:
            return None, self.stem.features[rows]
        source = self.experts[expert]
        scores = source.scores[rows] if not source.is_cut else source.scores_of(self.candidates[rows], rows)
        return scores, None if source.features is None else source.features[rows]


def likely_labels(experts: Sequence[ExpertPredictions]) -> torch.Tensor:
    """The labels that a pool thinks likely, image by image: every expert's first, then every expert's second, and so
    on up to the fifth; then those of most probability.

    Args:
        experts: whose scores are cut.

    Returns:
        int32 (n, K).
    """
    num_labels = experts[0].num_labels
    count = min(max(CANDIDATES, len(experts)), num_labels - 1)
    parts = []
    for rows in torch.arange(len(experts[0].scores)).split(ROWS_AT_ONCE):
        likely = torch.zeros(len(rows), num_labels)
        for expert in experts:
            labels = expert.labels[rows].long()
            likely.scatter_add_(1, labels, expert.scores[rows].exp())
            first = labels[:, :TOP_SCORES]
            bonus = 2.0 ** torch.arange(first.shape[1], 0, -1) * len(experts)
            likely.scatter_reduce_(1, first, bonus.expand(len(rows), -1), "amax")
        parts.append(likely.topk(count).indices.int())
    return torch.cat(parts)


def compress(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors that are kept of logits (n, C), see `ExpertPredictions`."""
    if logits.shape[1] <= MAX_DENSE_LABELS:
        return {"scores": logits}
    log_probs = logits.log_softmax(1)
    top, labels = log_probs.topk(KEPT_SCORES)
    rest = log_probs.scatter(1, labels, -torch.inf).logsumexp(1)
    return {"scores": top, "labels": labels.int(), "remainder": rest}
