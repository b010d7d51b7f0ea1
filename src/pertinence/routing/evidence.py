"""Evidence: the router features, that is, the numbers that a head reads about an image after some experts have run.

A kind of evidence is an object with a name, a version, the values that it reads, and a width. The stages of a saved
model name it; a model whose evidence is not registered, or has another version, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ..utils.errors import PertinenceError, shown
from .mixing import LEAST, LOG_FLOOR, TOP_SCORES, Array, library, log_odds, log_softmax, summary, top_label
from .registry import EVIDENCE


if TYPE_CHECKING:
    import torch


class Known(NamedTuple):
    """What is known of b images when a stage decides, on the host; None for what its evidence does not read.

    The current result is what the model answers if the image exits now: the mixture of the experts that have run.

    Attributes:
        votes: int64 (b, N), the prediction of each expert of the pool; those that have not run have `no_votes`.
        summary: float32 (b, 7), summary of the current result (see `mixing.summary`).
        log_probs: float32 (b, C), log-probabilities of the current result.
        logits: float32 (b, C), the current result before it is normalised. A search over very many labels keeps only
            the largest log-probabilities; there, evidence that reads logits is refused.
        features: float32 (b, F), pooled features of the expert that ran last.
        tail: how many labels the last column of `log_probs` stands for, see `policy.route`.
    """

    votes: np.ndarray
    summary: np.ndarray | None = None
    log_probs: np.ndarray | None = None
    logits: np.ndarray | None = None
    features: np.ndarray | None = None
    tail: int = 1


READINGS: Mapping[str, Callable[[Any, Any, int], Any]] = {
    "summary": lambda answer, features, tail: summary(answer, tail),
    "log_probs": lambda answer, features, tail: log_softmax(answer, tail),
    "logits": lambda answer, features, tail: answer,
    "features": lambda answer, features, tail: features,
}
"""What evidence may read, by field of `Known`, as functions of the current result, the features and the tail."""


class Evidence(Protocol):
    """A kind of evidence.

    Attributes:
        name: the name that stages give it.
        version: version of the computation; heads fitted with another version are refused.
        reads: the fields of `Known` that it needs, among `READINGS`.
        num_statistics: how many statistics are fitted and stored beside each head; may be 0.
    """

    name: str
    version: int
    reads: tuple[str, ...]
    num_statistics: int

    def width(self, num_experts: int, num_features: int) -> int:
        """How many numbers `compute` returns per image, for a pool of N experts and F pooled features."""
        ...

    def fit(self, logits: torch.Tensor, tail: int = 1) -> torch.Tensor | None:
        """Fit the statistics to results, logits (n, C): float32 (`num_statistics`,); None without statistics."""
        ...

    def compute(self, known: Known, statistics: np.ndarray | None) -> np.ndarray:
        """The router features of each image: float32 (b, `width`)."""
        ...


def register_evidence(evidence: Evidence) -> Evidence:
    """Register a kind of evidence, so that heads can read it: `--recipe paper --evidence NAME`.

    Saved models record the name and the version of the evidence that their heads read; they load only where it is
    registered.

    Args:
        evidence: an object that implements the protocol `pertinence.routing.evidence.Evidence`.

    Raises:
        PertinenceError: the name is that of a built-in evidence, the object lacks an attribute, or it reads something
            that `READINGS` does not have.
    """
    name = getattr(evidence, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):  # it is a part of the names of tensors in files
        raise PertinenceError(f"the name of an evidence must consist of letters, digits, - and _, got {shown(name)}")
    if unknown := set(getattr(evidence, "reads", ())) - set(READINGS):
        raise PertinenceError(
            f"evidence {shown(name)} reads {', '.join(sorted(unknown))}, expected some of {', '.join(READINGS)}"
        )
    return EVIDENCE.register(name, evidence)


def observe(
    reads: Sequence[str], own: Array | None, answer: Array | None, features: Array | None, tail: int = 1
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """Read what a stage needs of the expert that has just run, in one copy to the host.

    Args:
        reads: names among `READINGS`.
        own: (b, C), logits of the expert; None: the separate stem, which predicts nothing.
        answer: (b, C), logits of the current result.
        features: (b, F), of the expert.
        tail: see `policy.route`.

    Returns:
        int64 (b,), the predictions of the expert, None for a stem; and the values that were read, by field of `Known`.

    Raises:
        PertinenceError: logits are needed, but only the largest log-probabilities are kept.
    """
    if tail > 1 and "logits" in reads:
        raise PertinenceError(
            "this evidence reads logits, but with so many labels only the largest log-probabilities are kept: choose "
            "an evidence that reads log_probs or summary"
        )
    parts: dict[str, Any] = {} if own is None else {"label": top_label(own)}
    parts |= {name: READINGS[name](answer, features, tail) for name in reads}
    xp = library(next(iter(parts.values()))) if parts else np
    if xp is not np:
        joined = xp.cat(list(parts.values()), 1).cpu().numpy()
        ends = np.cumsum([part.shape[1] for part in parts.values()])[:-1]
        parts = dict(zip(parts, np.split(joined, ends, 1), strict=True))
    label = parts.pop("label", None)
    return None if label is None else label[:, 0].astype(np.int64), parts


def computed(evidence: Evidence, known: Known, statistics: np.ndarray | None) -> np.ndarray:
    """What a head reads of each image, in the precision in which heads are stored: float32 (b, width)."""
    return np.asarray(evidence.compute(known, statistics), dtype=np.float32)


def no_votes(count: int, num_experts: int) -> np.ndarray:
    """Votes of experts that have not run: int64 (count, N), not labels, and different within each row."""
    return np.zeros((count, 1), np.int64) - np.arange(1, num_experts + 1)


class PooledFeatures:
    """Pooled features of the expert that ran last, as in the paper (PERTINENCE, arXiv 2507.01695)."""

    name, version, num_statistics = "features", 1, 0
    reads: tuple[str, ...] = ("features",)

    def width(self, num_experts: int, num_features: int) -> int:
        return num_features

    def fit(self, logits: torch.Tensor, tail: int = 1) -> None:
        return None

    def compute(self, known: Known, statistics: np.ndarray | None) -> np.ndarray:
        assert known.features is not None
        return known.features


KNOT_QUANTILES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
TOP_PROBABILITY, MARGIN = TOP_SCORES, TOP_SCORES + 2
"""Positions of the largest probability, and of its margin over the second largest, in "confidence" and "mix"."""
LEAST_OUTCOMES = np.array([LOG_FLOOR] * TOP_SCORES + [LEAST], np.float32)


class ConfidenceAndAgreement:
    """The confidence of the current result, and which experts agree with it.

    In order: the five largest log-probabilities; p1, p2, p1 - p2, the entropy (the other labels count as one),
    log(1 - p1); whether each expert that has run agrees with the current result (N); mean agreement of pairs.
    """

    name, version, num_statistics = "confidence", 1, 0
    reads: tuple[str, ...] = ("summary",)

    def width(self, num_experts: int, num_features: int) -> int:
        return TOP_SCORES + 5 + num_experts + 1

    def fit(self, logits: torch.Tensor, tail: int = 1) -> None:
        return None

    def compute(self, known: Known, statistics: np.ndarray | None) -> np.ndarray:
        return _confidence(known, self.width(known.votes.shape[1], 0))


class MixtureStatistics:
    """The evidence "confidence", followed by hinges of logit(p1) at eight knots, and the same times whether the last
    two experts agree. The knots are the fitted statistics: low quantiles of logit(p1). Models of the first edition
    read this; the hinges are worth nothing beyond the rest, so `cascade` fits heads to "confidence" now.
    """

    name, version, num_statistics = "mix", 1, len(KNOT_QUANTILES)
    reads: tuple[str, ...] = ("summary",)

    def width(self, num_experts: int, num_features: int) -> int:
        return CONFIDENCE.width(num_experts, num_features) + 2 * self.num_statistics

    def fit(self, logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
        return log_odds(logits, tail).quantile(logits.new_tensor(KNOT_QUANTILES))

    def compute(self, known: Known, statistics: np.ndarray | None) -> np.ndarray:
        assert statistics is not None  # `fit` gives them to every head
        num_experts = known.votes.shape[1]
        evidence = _confidence(known, self.width(num_experts, 0))
        # logit(p1): the first log-probability, and log(1 - p1)
        confidence, at = evidence[:, 0] - evidence[:, TOP_SCORES + 4], CONFIDENCE.width(num_experts, 0)
        hinges = np.maximum(confidence[:, None] - statistics, 0)
        evidence[:, at : at + self.num_statistics] = hinges
        evidence[:, at + self.num_statistics :] = hinges * _last_agree(known.votes)[:, None]
        return evidence


def _confidence(known: Known, width: int) -> np.ndarray:
    """The columns of the evidence "confidence", first in a table (b, width) of zeros."""
    votes, summary = known.votes, known.summary
    assert summary is not None
    count, num_experts = votes.shape
    evidence = np.zeros((count, width), summary.dtype)
    likely = summary[:, :-1].copy()
    np.exp(likely[:, :TOP_SCORES], out=likely[:, :TOP_SCORES])
    outcomes = np.maximum(summary[:, :-1], LEAST_OUTCOMES)
    np.log(outcomes[:, TOP_SCORES], out=outcomes[:, TOP_SCORES])
    rest = np.log(np.maximum(likely[:, 1:].sum(1), LEAST))
    at = TOP_SCORES
    evidence[:, :at] = outcomes[:, :at]
    evidence[:, at : at + 2] = likely[:, :2]
    evidence[:, at + 2] = likely[:, 0] - likely[:, 1]
    evidence[:, at + 3] -= (likely * outcomes).sum(1)
    evidence[:, at + 4] = rest
    at += 5
    evidence[:, at : at + num_experts] = votes == summary[:, -1:]
    evidence[:, at + num_experts] = _agreement(votes)
    return evidence


class FeaturesAndMixture:
    """Pooled features, followed by the statistics of the current result."""

    name, version, num_statistics = "both", 1, len(KNOT_QUANTILES)
    reads: tuple[str, ...] = ("summary", "features")

    def width(self, num_experts: int, num_features: int) -> int:
        return FEATURES.width(num_experts, num_features) + MIX.width(num_experts, num_features)

    def fit(self, logits: torch.Tensor, tail: int = 1) -> torch.Tensor:
        return MIX.fit(logits, tail)

    def compute(self, known: Known, statistics: np.ndarray | None) -> np.ndarray:
        assert known.features is not None
        return np.concatenate([known.features, MIX.compute(known, statistics)], 1)


FEATURES, CONFIDENCE, MIX, BOTH = PooledFeatures(), ConfidenceAndAgreement(), MixtureStatistics(), FeaturesAndMixture()


def compute_evidence(
    evidence: Evidence,
    logits: torch.Tensor,
    votes: torch.Tensor,
    ran: torch.Tensor,
    statistics: torch.Tensor | None = None,
    tail: int = 1,
) -> torch.Tensor:
    """Compute evidence that reads no features from tensors on the CPU: (b, width).

    Args:
        evidence: the kind of evidence.
        logits: (b, C), the current result.
        votes: int64 (b, N), the prediction of each expert.
        ran: bool (b, N), which experts have run.
        statistics: from `Evidence.fit`; None if it has none.
        tail: see `policy.route`.
    """
    import torch

    result, labels, has_run = (tensor.cpu().numpy() for tensor in (logits, votes, ran))
    labels = np.where(has_run, labels, no_votes(len(labels), labels.shape[1]))
    read = {name: READINGS[name](result, None, tail) for name in evidence.reads}
    known = Known(labels, tail=tail, **read)
    return torch.from_numpy(evidence.compute(known, None if statistics is None else statistics.cpu().numpy()))


def _agreement(votes: np.ndarray) -> np.ndarray | float:
    """Mean agreement of pairs of experts that have run, 1 if there is no pair: float64 (b,), or 1 for all."""
    run = (votes >= 0).sum(1)
    if run.max(initial=0) < 2:
        return 1.0
    # The N x N table contains N ones on its diagonal, and each agreeing pair twice.
    agreeing = (votes[:, :, None] == votes[:, None, :]).sum((1, 2)) - votes.shape[1]
    return np.where(run > 1, agreeing / np.maximum(run * (run - 1), 1), 1)


def _last_agree(votes: np.ndarray) -> np.ndarray:
    """Whether the last two experts that have run agree: bool (b,)."""
    ran = votes >= 0
    from_last = np.where(ran, ran[:, ::-1].cumsum(1)[:, ::-1], 0)
    last, before = (np.where(from_last == place, votes, 0).sum(1) for place in (1, 2))
    return (last == before) & (ran.sum(1) > 1)
