"""Recipes: how genomes become trained dispatchers, and what they are worth on the search images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from ...data.splits import stratified_split
from ...evaluation.baselines import Candidate
from ...evaluation.intervals import paired_difference, wilson_interval
from ...evaluation.outcomes import evaluate_experts, summarise
from ...predictions.predict import ROWS_AT_ONCE, Predictions
from ...routing.costs import STEM
from ...routing.evidence import EVIDENCE, Known, no_votes, observe
from ...routing.front import OperatingPoint, Stage
from ...routing.heads import Head
from ...routing.metrics import Figures
from ...routing.policy import allowed_actions, brought, choose
from ..arguments import SearchArguments
from .cascade import CascadeCurve, CascadeFitter
from .chains import ChainFamily
from .paper_training import FitData, routing_classes, train_paper_heads
from .spaces import CascadeSpace, PaperSpace, ThresholdSpace


@dataclass(frozen=True)
class Individual:
    """A fitted genome: one candidate, or a whole curve of them.

    Attributes:
        accuracy, costs: float64 (L,), of each candidate.
        own: index of the candidate that stands for the genome.
        candidate: makes the candidate of an index.
    """

    accuracy: np.ndarray
    costs: np.ndarray
    own: int
    candidate: Callable[[int], Candidate]

    @classmethod
    def of(cls, point: OperatingPoint, heads: tuple[Head, ...], versus_largest: tuple[float, float]) -> Individual:
        """A genome that makes one candidate, whose figures its point has."""
        candidate = Candidate(point, heads, versus_largest)
        return cls(np.array([candidate.accuracy]), np.array([candidate.cost]), 0, lambda _: candidate)


class Recipe(Protocol):
    """What the genetic algorithm needs of a recipe."""

    name: str
    measure: str
    space: PaperSpace | CascadeSpace | ThresholdSpace

    def evaluate(self, genomes: np.ndarray) -> Iterator[Individual]:
        """Fit and judge a population: genomes (P, G) to P individuals, one after the other."""


class PaperRecipe:
    """One decision by what the stem saw, then one expert, which answers alone (arXiv 2507.01695).

    The stem is the cheapest expert, or a network of its own. The decision reads its pooled features, as in the paper,
    or with `evidence="both"` the statistics of its answer, too: a linear map of features cannot tell how sure a
    classifier is. The search images are divided once: `fit` trains heads, `select` judges them.

    Args:
        predictions: of the search images, with the features of the stem.
        fit_rows, select_rows: int64, which images train heads and which judge them.
        arguments: settings of the search.
        device: where heads are trained.
    """

    name = "paper"

    def __init__(
        self,
        predictions: Predictions,
        fit_rows: torch.Tensor,
        select_rows: torch.Tensor,
        arguments: SearchArguments,
        device: torch.device | str = "cpu",
    ):
        self.arguments, self.device = arguments, device
        self.fit, self.select = predictions.subset(fit_rows), predictions.subset(select_rows)
        self.measure, self.num_experts = predictions.measure, predictions.num_experts
        self.space = PaperSpace(self.num_experts)
        stage = Stage(0, arguments.evidence) if predictions.stem is None else Stage(STEM, "features")
        if predictions.stem is None and predictions.experts[0].features is None:
            stage = Stage(0, "mix")  # a table of predictions has no features
        self.point = OperatingPoint("", self.name, tuple(range(self.num_experts)), (stage,))
        first_logits = self.fit.outputs(0, torch.arange(len(self.fit)))[0]
        self.evidence = EVIDENCE.get(stage.evidence)
        self.statistics = self.evidence.fit(first_logits, predictions.tail)
        classes = routing_classes(self.fit.correct(), arguments.unsolved)
        used = classes >= 0
        evidence = self._evidence_of(self.fit)
        self._data = FitData(torch.from_numpy(evidence)[used].to(device), classes[used].to(device), self.num_experts)
        self._evidence = self._evidence_of(self.select)
        self._correct = self.select.correct()
        self._largest = evaluate_experts(self.select)[-1]

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
            parts.append(self.evidence.compute(known, None if self.statistics is None else self.statistics.numpy()))
        return np.concatenate(parts)

    def evaluate(self, genomes: np.ndarray) -> Iterator[Individual]:
        heads = train_paper_heads(
            self._data,
            self.space.decode(genomes, self._data.counts.cpu()).to(self.device),
            self.space.initial_weights(genomes, self._evidence.shape[1]).to(self.device),
            epochs=self.arguments.epochs,
            learning_rate=self.arguments.learning_rate,
            batch_size=self.arguments.head_batch_size,
            seed=self.arguments.seed,
        )
        weights, biases = heads.weight.cpu(), heads.bias.cpu()
        # One by one, as the model decides: no individual's bits depend on its neighbours.
        for weight, bias in zip(weights, biases, strict=True):
            yield self._judge(Head(weight.clone(), bias.clone(), self.statistics))

    def _judge(self, head: Head) -> Individual:
        stage, select = self.point.stages[0], self.select
        allowed = allowed_actions(self.point, stage, self.num_experts)
        choice = torch.from_numpy(choose(head.scores(self._evidence), allowed))
        right = self._correct.gather(1, choice.unsqueeze(1)).squeeze(1)

        # A stem that is an expert has run on every image; where it is chosen its output is there already.
        nothing = np.zeros(self.num_experts, dtype=bool)
        ran = nothing if stage.after == STEM else np.arange(self.num_experts) == stage.after

        def cost(unit: str) -> torch.Tensor:
            price = select.costs.marginal
            then = torch.tensor([float(price(unit, e, ran)) for e in range(self.num_experts)], dtype=torch.float64)
            return float(price(unit, stage.after, nothing)) + then[choice] + select.costs.of_head(unit, head.size)

        shares = torch.bincount(choice, minlength=self.num_experts) / len(choice)
        costs = {unit: cost(unit) for unit in select.costs.values}
        outcome = summarise(select, right, costs, shares, select.candidates is not None)
        return Individual.of(replace(self.point, select=outcome.figures), (head,), outcome.versus(self._largest))


class CascadeRecipe:
    """A decision after every expert, fitted backwards and out of fold: `cascade.CascadeFitter`.

    Args:
        fitter: prepared for the search images.
        predictions: the same images.
        family: the chains that may be chosen.
    """

    name = "cascade"

    def __init__(self, fitter: CascadeFitter, predictions: Predictions, family: ChainFamily):
        self.predictions, self.measure = predictions, predictions.measure
        self.space = CascadeSpace(family)
        # Genomes that differ in lambda alone, or in nothing that matters, are the same fit.
        self.fit = lru_cache(maxsize=None)(fitter.fit)

    def evaluate(self, genomes: np.ndarray) -> Iterator[Individual]:
        for genome in genomes:
            settings, price = self.space.decode(genome)
            curve = self.fit(settings)
            own = int(np.abs(curve.prices - price).argmin())
            yield Individual(curve.accuracy, curve.cost, own, self._maker(curve))

    def _maker(self, curve: CascadeCurve) -> Callable[[int], Candidate]:
        def candidate(index: int) -> Candidate:
            accuracy = float(curve.accuracy[index])
            figures = Figures(
                accuracy,
                wilson_interval(accuracy, curve.samples),
                {unit: float(spent[index]) for unit, spent in curve.costs.items()},
                tuple(curve.shares[index].tolist()),
                curve.samples,
                self.predictions.candidates is not None,
                self.predictions.costs.objective,
                self.predictions.measure,
                estimate=True,
            )
            point = OperatingPoint("", self.name, curve.point.members, curve.point.stages, figures)
            versus = paired_difference(int(curve.wins[index]), int(curve.losses[index]), curve.samples)
            return Candidate(point, curve.heads(index), versus)

        return candidate


def static_candidates(predictions: Predictions) -> list[Candidate]:
    """Every expert alone: in the archive of each search from the start."""
    outcomes = evaluate_experts(predictions)
    return [
        Candidate(OperatingPoint("", "static", (index,), select=one.figures), (), one.versus(outcomes[-1]))
        for index, one in enumerate(outcomes)
    ]


def make_recipes(
    predictions: Predictions,
    arguments: SearchArguments,
    mixing: bool,
    device: torch.device | str,
    smaller: Mapping[int, int] | None = None,
) -> tuple[list[Recipe], Predictions, dict[str, int]]:
    """The recipes that `arguments.recipe` names.

    Args:
        predictions: of the search images.
        arguments: settings of the search.
        mixing: whether a cascade mixes the experts that were run.
        device: where heads are trained.
        smaller: see `ChainFamily`.

    Returns:
        The recipes; the images that all of them are judged on; and how many images do what.
    """
    wants_paper, wants_cascade = arguments.recipe in ("paper", "both"), arguments.recipe in ("cascade", "both")
    recipes: list[Recipe] = []
    judged, select_rows = predictions, None
    counts = {}
    if wants_paper:
        fraction, seed = arguments.select_fraction, arguments.seed
        fit_rows, select_rows = stratified_split(predictions.targets, fraction, seed, predictions.copies)
        recipes.append(PaperRecipe(predictions, fit_rows, select_rows, arguments, device))
        judged = predictions.subset(select_rows)
        counts |= {"fit": len(fit_rows), "select": len(select_rows)}
    if wants_cascade:
        # Beside `paper`, both are judged on the same images.
        # Another seed than the division above: its images must be dealt out to all folds.
        seed = arguments.seed + wants_paper
        fitter = CascadeFitter(predictions, arguments.folds, seed, mixing, select_rows, device)
        recipes.append(CascadeRecipe(fitter, predictions, ChainFamily.of(judged, smaller)))
        counts |= {"cross_fit": len(predictions), "folds": arguments.folds, "select": len(judged)}
    return recipes, judged, counts
