"""The recipe `paper`: one decision from the features of the stem, then one expert (PERTINENCE, arXiv 2507.01695)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...evaluation.candidates import Candidate
from ...evaluation.outcomes import evaluate_experts, summarise
from ...predictions.predictions import ROWS_AT_ONCE, Predictions
from ...routing.costs import STEM
from ...routing.evidence import BOTH, FEATURES, MIX, Evidence, Known, computed, no_votes, observe
from ...routing.front import OperatingPoint, Stage
from ...routing.heads import Head
from ...routing.policy import brought
from ...routing.registry import EVIDENCE
from ...routing.sweep import allowed_actions, choose
from ...utils.errors import PertinenceError
from .arguments import PaperArguments
from .base import Problem, Recipe
from .paper_training import FitData, routing_classes, train_paper_heads


@dataclass(frozen=True)
class PaperSpace:
    """Genome of the recipe `paper` (PERTINENCE, arXiv 2507.01695): N x N penalties and the class weighting scheme.

    The penalties P[true, predicted] lie in [0, 100]; those on the diagonal have no effect, since a right decision
    costs nothing. The integer part of the last gene, in [0, 3), chooses one of the weighting schemes.

    Args:
        num_experts: size of the pool, N.
    """

    num_experts: int
    schemes = ("INS", "ISNS", "ENS")

    @property
    def lower(self) -> np.ndarray:
        return np.zeros(self.num_experts**2 + 1)

    @property
    def upper(self) -> np.ndarray:
        scheme = np.nextafter(float(len(self.schemes)), 0.0)
        return np.append(np.full(self.num_experts**2, 100.0), scheme)

    @property
    def seeds(self) -> np.ndarray:
        return np.empty((0, len(self.lower)))

    @property
    def neutral(self) -> np.ndarray:
        """Equal penalties, with each weighting scheme."""
        penalties = np.full((len(self.schemes), self.num_experts**2), 50.0)
        return np.column_stack([penalties, np.arange(len(self.schemes)) + 0.5])

    def decode(self, genomes: np.ndarray, counts: torch.Tensor) -> torch.Tensor:
        """Cost, in the loss, of each misrouting: class weight x penalty.

        Args:
            genomes: (P, N * N + 1).
            counts: int64 (N,), number of fit images of each class.

        Returns:
            float32 (P, N, N), indexed [individual, true, predicted]; zero on the diagonal.
        """
        penalties = torch.from_numpy(genomes[:, :-1]).float().reshape(-1, self.num_experts, self.num_experts)
        penalties = penalties * (1 - torch.eye(self.num_experts))
        schemes = torch.from_numpy(np.floor(genomes[:, -1]).astype(np.int64))
        return class_weights(counts)[schemes].unsqueeze(2) * penalties

    def initial_weights(self, genomes: np.ndarray, num_features: int) -> torch.Tensor:
        """Initial weights of each individual: float32 (P, N, num_features + 1), the bias last.

        They are uniform, as in torch's linear layers, and seeded by the genome itself, so that the same genome always
        gives the same individual.
        """
        bound = num_features**-0.5
        starts = []
        for genome in np.ascontiguousarray(genomes, dtype=np.float64):
            seed = int.from_bytes(hashlib.sha256(genome.tobytes()).digest()[:8], "little") >> 1
            uniform = torch.rand(self.num_experts, num_features + 1, generator=torch.Generator().manual_seed(seed))
            starts.append((2 * uniform - 1) * bound)
        return torch.stack(starts)


def class_weights(counts: torch.Tensor, beta: float = 0.9999) -> torch.Tensor:
    """The paper's weighting schemes for class counts (N,): INS 1/n, ISNS 1/sqrt(n),
    ENS (1 - b)/(1 - b^n) (Cui et al. 2019).

    Each scheme is scaled to a mean of one over the images (Adam is invariant to this scale); a class without images
    has weight zero. Returns float32 (3, N).
    """
    n = counts.double().clamp_min(1)
    weights = torch.stack([1 / n, n.rsqrt(), (1 - beta) / (1 - beta**n)])
    weights = weights * (counts > 0)
    return (weights * counts.sum() / (weights * counts).sum(1, keepdim=True)).float()


def _readable(evidence: Evidence, predictions: Predictions) -> Evidence:
    """The evidence that a decision can read: the requested one, or the part of a built-in one that is available.

    A separate stem predicts nothing and only has features; a table of predictions has no features.

    Raises:
        PertinenceError: no part is available, or the evidence is not a built-in one, whose parts are known.
    """
    is_ours = evidence in (FEATURES, MIX, BOTH)
    if predictions.stem is None:
        has_features = predictions.experts[0].features is not None
        if has_features or "features" not in evidence.reads:
            return evidence
        if is_ours:
            return MIX
        raise PertinenceError(
            f"a table of predictions has no features, which evidence {evidence.name!r} reads: choose another evidence"
        )
    if "features" not in evidence.reads or not (is_ours or set(evidence.reads) == {"features"}):
        raise PertinenceError(
            f"a separate stem predicts nothing, and evidence {evidence.name!r} reads what an expert predicts: leave "
            "stem or evidence out"
        )
    return evidence if set(evidence.reads) == {"features"} else FEATURES


class PaperRecipe(Recipe):
    """One decision from the features of the stem, then one expert, which answers alone (arXiv 2507.01695).

    The stem is the cheapest expert, or a separate network. The decision reads its pooled features, as in the paper, or
    other evidence; "both" adds the statistics of its prediction, as a linear map of features cannot express the
    confidence of a classifier. The search images are divided once: `fit` trains heads, `select` evaluates them.

    Args:
        predictions: predictions for the search images, with the features of the stem.
        fit_rows, select_rows: int64, the images that train heads and those that evaluate them.
        arguments: settings of the recipe.
        seed: random seed of the order in which images train heads.
        reference: pool index of the expert that dispatchers are compared with.
        device: device to train heads on.
    """

    name = "paper"

    def __init__(
        self,
        predictions: Predictions,
        fit_rows: torch.Tensor,
        select_rows: torch.Tensor,
        arguments: PaperArguments,
        seed: int,
        reference: int,
        device: torch.device | str = "cpu",
    ):
        self.arguments, self.seed, self.device = arguments, seed, device
        self.fit, self.select = predictions.subset(fit_rows), predictions.subset(select_rows)
        self.measure, self.num_experts = predictions.measure, predictions.num_experts
        self.images = {"fit": len(self.fit), "select": len(self.select)}
        self.space = PaperSpace(self.num_experts)
        self.evidence = _readable(EVIDENCE.get(arguments.evidence), predictions)
        after = 0 if predictions.stem is None else STEM
        stage = Stage(after, self.evidence.name, evidence_version=self.evidence.version)
        self.point = OperatingPoint("", self.name, tuple(range(self.num_experts)), (stage,))
        first_logits = self.fit.logits(0, torch.arange(len(self.fit)))
        self.statistics = self.evidence.fit(first_logits, predictions.tail)
        classes = routing_classes(self.fit.correct(), arguments.unsolved)
        used = classes >= 0
        evidence = self._evidence_of(self.fit)
        self._data = FitData(torch.from_numpy(evidence)[used].to(device), classes[used].to(device), self.num_experts)
        self._evidence = self._evidence_of(self.select)
        self._correct = self.select.correct()
        self._reference = evaluate_experts(self.select)[reference]

    @classmethod
    def features_of(cls, settings: PaperArguments) -> Sequence[int]:
        reads_features = "features" in EVIDENCE.get(settings.evidence).reads
        return [0] if settings.stem is None and reads_features else []

    @classmethod
    def divides(cls, settings: PaperArguments) -> float:
        return settings.select_fraction

    @classmethod
    def prepare(cls, problem: Problem) -> PaperRecipe:
        assert problem.division is not None  # asked for by `divides`
        fit_rows, select_rows = problem.division
        return cls(
            problem.predictions,
            fit_rows,
            select_rows,
            problem.settings,
            problem.seed,
            problem.compared_with,
            problem.device,
        )

    def _evidence_of(self, predictions: Predictions) -> np.ndarray:
        stage = self.point.stages[0]
        parts = []
        for rows in torch.arange(len(predictions)).split(ROWS_AT_ONCE):
            logits, features = map(brought, predictions.outputs(stage.after, rows))
            label, seen = observe(self.evidence.reads, logits, logits, features, predictions.tail)
            votes = no_votes(len(rows), self.num_experts)
            if label is not None:
                votes[:, 0] = label
            known = Known(votes, tail=predictions.tail, **seen)
            parts.append(computed(self.evidence, known, None if self.statistics is None else self.statistics.numpy()))
        evidence = np.concatenate(parts)
        known_features = (predictions.experts[0] if predictions.stem is None else predictions.stem).features
        width = self.evidence.width(self.num_experts, 0 if known_features is None else known_features.shape[1])
        if evidence.shape != (len(predictions), width) or not np.isfinite(evidence).all():
            raise PertinenceError(
                f"evidence {self.evidence.name!r} gives numbers of shape {evidence.shape}, of which "
                f"{np.isfinite(evidence).sum()} are finite, expected {(len(predictions), width)}, all of them finite: "
                "correct its `compute` or its `width`"
            )
        return evidence

    def evaluate(self, genomes: np.ndarray) -> Iterator[Candidate]:
        heads = train_paper_heads(
            self._data,
            self.space.decode(genomes, self._data.counts.cpu()).to(self.device),
            self.space.initial_weights(genomes, self._evidence.shape[1]).to(self.device),
            epochs=self.arguments.epochs,
            learning_rate=self.arguments.learning_rate,
            batch_size=self.arguments.head_batch_size,
            seed=self.seed,
        )
        weights, biases = (torch.as_tensor(values).cpu() for values in (heads.weight, heads.bias))
        # One by one, as in the model, so that no individual's bits depend on the others.
        for weight, bias in zip(weights, biases, strict=True):
            yield self._judge(Head(weight.clone(), bias.clone(), self.statistics))

    def _judge(self, head: Head) -> Candidate:
        stage, select = self.point.stages[0], self.select
        allowed = allowed_actions(self.point, stage, self.num_experts)
        choice = torch.from_numpy(choose(head.scores(self._evidence), allowed))
        right = self._correct.gather(1, choice.unsqueeze(1)).squeeze(1)

        # A stem that is an expert has already run on every image, so that choosing it costs nothing more.
        nothing = np.zeros(self.num_experts, dtype=bool)
        ran = nothing if stage.after == STEM else np.arange(self.num_experts) == stage.after

        def cost(unit: str) -> torch.Tensor:
            price = select.costs.marginal
            then = torch.tensor([float(price(unit, e, ran)) for e in range(self.num_experts)], dtype=torch.float64)
            return float(price(unit, stage.after, nothing)) + then[choice] + select.costs.of_head(unit, head.size)

        shares = torch.bincount(choice, minlength=self.num_experts) / len(choice)
        costs = {unit: cost(unit) for unit in select.costs.values}
        outcome = summarise(select, right, costs, shares, select.candidates is not None)
        point = replace(self.point, select=outcome.figures)
        return Candidate(point, (head,), outcome.versus(self._reference))
