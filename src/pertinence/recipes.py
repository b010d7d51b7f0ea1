"""Recipes: how a genome becomes a trained dispatcher and what it is worth on the search images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .arguments import SearchArguments
from .data import stratified_split
from .dispatcher import Head, allowed_actions, choose, fit_knots, stage_evidence
from .front import OperatingPoint, Stage
from .genome import PaperSpace
from .predictions import Predictions
from .training import FitData, routing_classes, train_paper_heads


@dataclass(frozen=True)
class Candidate:
    """One evaluated individual.

    Attributes:
        point: not named yet.
        heads: the very weights that were evaluated.
        accuracy, gmacs: its objectives.
    """

    point: OperatingPoint
    heads: tuple[Head, ...]
    accuracy: float
    gmacs: float


class PaperRecipe:
    """One decision by what the cheapest expert saw, then one expert, which answers alone (arXiv 2507.01695).

    The decision reads the cheapest expert's pooled features, as in the paper, or with `evidence="both"` the statistics
    of its answer, too: a linear map of features cannot tell how sure a classifier is. The search images are divided
    once: `fit` trains heads, `select` judges them.

    Args:
        predictions: of the search images, with the features of expert 0.
        arguments: settings of the search.
        device: where heads are trained.
    """

    name = "paper"

    def __init__(self, predictions: Predictions, arguments: SearchArguments, device: torch.device | str = "cpu"):
        self.arguments, self.device = arguments, device
        fit_rows, select_rows = stratified_split(predictions.targets, arguments.select_fraction, arguments.seed)
        self.fit, self.select = predictions.subset(fit_rows), predictions.subset(select_rows)
        num_experts = len(predictions.gmacs)
        self.space = PaperSpace(num_experts)
        self.point = OperatingPoint("", self.name, tuple(range(num_experts)), (Stage(0, arguments.evidence),))
        everything = torch.arange(len(self.fit))
        self.knots = None if arguments.evidence == "features" else fit_knots(self.fit.answer(0, everything)[0])
        self._data = FitData(
            self._evidence_of(self.fit),
            routing_classes(self.fit.correct(), arguments.unsolved).to(device),
            num_experts,
        )
        self._evidence = self._evidence_of(self.select)
        self._correct = self.select.correct().to(device)

    def _evidence_of(self, predictions: Predictions) -> torch.Tensor:
        logits, features = predictions.answer(0, torch.arange(len(predictions)))
        ran = torch.zeros(len(logits), self.space.num_experts, dtype=torch.bool)
        ran[:, 0] = True
        votes = torch.where(ran, logits.argmax(1, keepdim=True), 0)
        return stage_evidence(self.arguments.evidence, logits, votes, ran, features, self.knots).to(self.device)

    def evaluate(self, genomes: np.ndarray) -> list[Candidate]:
        """Train and judge a population: genomes (P, G) to P candidates."""
        heads = train_paper_heads(
            self._data,
            self.space.decode(genomes, self._data.counts.cpu()).to(self.device),
            self.space.initial_weights(genomes, self._evidence.shape[1]).to(self.device),
            epochs=self.arguments.epochs,
            learning_rate=self.arguments.learning_rate,
            batch_size=self.arguments.head_batch_size,
            seed=self.arguments.seed,
        )
        allowed = allowed_actions(self.point, self.point.stages[0], self.space.num_experts).to(self.device)
        choice = choose(heads.scores(self._evidence), allowed)
        correct = self._correct.expand(len(choice), -1, -1).gather(2, choice.unsqueeze(2)).squeeze(2)
        gmacs = torch.tensor(self.select.gmacs, dtype=torch.float64, device=self.device)
        # The first expert runs on every image; where it is chosen its answer is there already.
        cost = gmacs[0] + heads.gmacs + torch.where(choice > 0, gmacs[choice], 0.0)
        weights, biases = heads.weight.cpu(), heads.bias.cpu()
        return [
            Candidate(self.point, (Head(weight, bias, self.knots),), accuracy, mean)
            for weight, bias, accuracy, mean in zip(
                weights, biases, correct.double().mean(1).tolist(), cost.mean(1).tolist(), strict=True
            )
        ]


def static_candidates(predictions: Predictions) -> list[Candidate]:
    """Every expert alone: in the archive of each search from the start."""
    accuracy = predictions.correct().double().mean(0).tolist()
    return [
        Candidate(OperatingPoint("", "static", (index,)), (), accuracy[index], gmacs)
        for index, gmacs in enumerate(predictions.gmacs)
    ]
