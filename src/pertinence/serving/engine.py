"""What answers images: the model in this process, and the answer to one image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..evaluation.answers import known_values
from ..hub.configuration import PertinenceConfig
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..routing.costs import STEM
from ..routing.front import OperatingPoint


ANSWER = "answer"
"""Name of the decision to answer."""


@dataclass(frozen=True)
class Decision:
    """What was decided after an expert had run.

    Attributes:
        after: name of that expert.
        chosen: name of the expert that ran next, or "answer".
        scores: the score of each possible action, by the name of its expert, and of "answer"; the largest won.
    """

    after: str
    chosen: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """The answer to one image.

    Attributes:
        logits: float32 (C,).
        expert: name of the expert that answered.
        experts_run: names of the experts that ran, in order.
        gmacs: what it cost.
        operating_point: name of the point.
        decisions: why: one for each decision that was reached.
        confidence: calibrated probability that the answer is right; None if the model does not know it.
        abstained: whether no answer is given, as the error rate or an unlike image demands it.
        ood_p_value: how unlike the search images the image is; None if the model does not know it.
    """

    logits: np.ndarray
    expert: str
    experts_run: tuple[str, ...]
    gmacs: float
    operating_point: str
    decisions: tuple[Decision, ...] = ()
    confidence: float | None = None
    abstained: bool = False
    ood_p_value: float | None = None


class Engine(Protocol):
    """Answers images; it is called from one thread at a time."""

    config: PertinenceConfig

    def answer(self, images: Sequence[torch.Tensor], point: OperatingPoint) -> list[Answer]:
        """The answers to uint8 images (3, H, W), in order.

        Raises:
            PertinenceError: an expert cannot take one of the images.
        """


class ModelEngine:
    """A model in this process.

    Args:
        model: the model.
        max_error_rate: the promised error rate that images are answered at; None: all are answered.
    """

    def __init__(self, model: PertinenceForImageClassification, max_error_rate: float | None = None):
        self.model, self.config = model, model.config
        self._rate = 1.0 if max_error_rate is None else max_error_rate
        self._names = {STEM: model.config.stem_entry.name if model.config.stem_entry else ""}
        self._names |= dict(enumerate(model.config.expert_names))

    def answer(self, images: Sequence[torch.Tensor], point: OperatingPoint) -> list[Answer]:
        """See `Engine`."""
        out: Any = self.model(list(images), operating_point=point.name, max_error_rate=self._rate)
        logits, scores = out.logits.float().cpu().numpy(), out.dispatcher_logits.cpu().tolist()
        experts, gmacs, abstained = out.expert_indices.tolist(), out.gmacs.tolist(), out.abstained.tolist()
        confidence, p_values = known_values(out.confidence, len(images)), known_values(out.ood_p_value, len(images))
        ran = [[index for index, did_run in enumerate(row) if did_run] for row in out.experts_run.tolist()]
        return [
            Answer(
                logits[row],
                self._names[experts[row]],
                tuple(self._names[index] for index in ran[row]),
                gmacs[row],
                point.name,
                self._decisions(point, ran[row], scores[row]),
                confidence[row],
                abstained[row],
                p_values[row],
            )
            for row in range(len(images))
        ]

    def _decisions(self, point: OperatingPoint, ran: list[int], scores: list[list[float]]) -> tuple[Decision, ...]:
        following = dict(zip([STEM, *ran], ran, strict=False))
        found = []
        for stage, row in zip(point.decisions, scores, strict=True):
            possible = {index: score for index, score in enumerate(row) if not math.isnan(score)}
            if not possible:  # not reached
                continue
            after = following.get(stage.after)
            named = {ANSWER if index == stage.after else self._names[index]: s for index, s in possible.items()}
            chosen = ANSWER if after is None else self._names[after]
            found.append(Decision(self._names[stage.after], chosen, named))
        return tuple(found)
