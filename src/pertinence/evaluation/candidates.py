"""Candidates for the front: trained dispatchers with their estimates from the search, in memory and in files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open

from ..predictions.predictions import Predictions
from ..routing.evidence import MIX
from ..routing.front import OperatingPoint
from ..routing.heads import Head
from ..routing.metrics import Figures
from ..routing.registry import EVIDENCE
from ..utils.io import replaced
from ..utils.tensors import save_tensors
from .intervals import non_dominated
from .outcomes import Outcome, evaluate_point


@dataclass(frozen=True)
class Candidate:
    """A trained dispatcher that may become an operating point.

    Attributes:
        point: operating point without a name, with its figures on the search images (`select`).
        heads: the heads that those figures belong to.
        versus_reference: mean difference of accuracy to the reference expert on the same images, and its standard
            error.
    """

    point: OperatingPoint
    heads: tuple[Head, ...]
    versus_reference: tuple[float, float]

    @classmethod
    def measured(
        cls, point: OperatingPoint, heads: tuple[Head, ...], predictions: Predictions, reference: Outcome
    ) -> Candidate:
        """Measure an operating point with the code that the model runs.

        Args:
            point: operating point without a name.
            heads: one for each of its decisions.
            predictions: predictions for the images to evaluate on.
            reference: outcome of the reference expert on the same images, one of `outcomes.evaluate_experts`.
        """
        outcome = evaluate_point(point, heads, predictions)
        return cls(replace(point, select=outcome.figures), heads, outcome.versus(reference))

    def check(self, num_experts: int, feature_sizes: Mapping[int, int]) -> None:
        """Raise `ValueError` unless this can be a measured dispatcher of a pool of `num_experts`."""
        replace(self.point, name="candidate").validate(num_experts)
        kinds = [EVIDENCE.require(stage.evidence, "a baseline") for stage in self.point.decisions]
        shapes = [
            (num_experts, kind.width(num_experts, feature_sizes.get(stage.after, 0)))
            for kind, stage in zip(kinds, self.point.decisions, strict=True)
        ]
        if [tuple(head.weight.shape) for head in self.heads] != shapes or self.point.select is None:
            raise ValueError("its heads do not fit the pool")
        for head, kind in zip(self.heads, kinds, strict=True):
            is_finite = all(np.isfinite(np.asarray(values)).all() for values in (head.weight, head.bias))
            if not is_finite or (0 if head.statistics is None else len(head.statistics)) != kind.num_statistics:
                raise ValueError("its heads hold impossible numbers")

    @property
    def figures(self) -> Figures:
        """Its figures on the search images; `check` makes sure that one from a file has them."""
        return cast(Figures, self.point.select)

    @property
    def accuracy(self) -> float:
        return self.figures.accuracy

    @property
    def cost(self) -> float:
        return self.figures.cost

    @property
    def estimate(self) -> float:
        """The accuracy that chooses among candidates: by out-of-fold decisions if there is such an estimate, else as
        measured. What is stated (`accuracy`) is smaller, and may be equal for several points."""
        return self.accuracy if self.figures.out_of_fold is None else self.figures.out_of_fold


def static_candidates(outcomes: Sequence[Outcome], reference: int = -1) -> list[Candidate]:
    """Candidates of single experts, by rising cost.

    Args:
        outcomes: outcome of each on the images that a search evaluates on.
        reference: the expert that the others are compared with.
    """
    return [
        Candidate(OperatingPoint("", "static", (index,), select=one.figures), (), one.versus(outcomes[reference]))
        for index, one in enumerate(outcomes)
    ]


class Archive:
    """The Pareto front of all candidates that were added, by rising cost and `estimate`; of equal ones the first."""

    def __init__(self, candidates: Iterable[Candidate] = ()):
        self.candidates: list[Candidate] = []
        self.add(candidates)

    def add(self, candidates: Iterable[Candidate]) -> None:
        merged = [*self.candidates, *candidates]
        kept = non_dominated([c.cost for c in merged], [c.estimate for c in merged])
        self.candidates = [merged[index] for index in kept]

    def is_improved_by(self, candidate: Candidate) -> bool:
        """Whether a candidate would enter: no known one is at least as good and costs no more."""
        return not any(c.cost <= candidate.cost and c.estimate >= candidate.estimate for c in self.candidates)


def save_candidates(path: Path, groups: Mapping[str, Sequence[Candidate]], state: Any = None) -> None:
    """Write groups of candidates, and a JSON value, to one safetensors file, atomically."""
    weights, entries = [torch.zeros(0)], {}
    for name, candidates in groups.items():
        entries[name] = [
            {
                "point": candidate.point.to_dict(),
                "versus_reference": candidate.versus_reference,
                "heads": [
                    [*head.weight.shape, 0 if head.statistics is None else len(head.statistics)]
                    for head in candidate.heads
                ],
            }
            for candidate in candidates
        ]
        for head in (head for candidate in candidates for head in candidate.heads):
            stored = [head.weight, head.bias, *([] if head.statistics is None else [head.statistics])]
            weights += [torch.as_tensor(values).flatten() for values in stored]
    # As a tensor, since the header of a safetensors file must stay below 100 MB.
    text = torch.frombuffer(bytearray(json.dumps({"groups": entries, "state": state}), "utf-8"), dtype=torch.uint8)
    with replaced(path) as temporary:
        save_tensors({"heads": torch.cat(weights), "json": text}, temporary)


def _count(statistics: bool | int) -> int:
    """How many statistics a head has; old files store only whether it has those of "mix"."""
    return MIX.num_statistics if statistics is True else statistics


def load_candidates(path: Path, parse: Callable[[str], Any] = json.loads) -> tuple[dict[str, list[Candidate]], Any]:
    """Read what `save_candidates` wrote: the groups, and the JSON value, parsed by `parse`."""
    with safe_open(path, framework="pt") as file:
        stored, weights = parse(file.get_tensor("json").numpy().tobytes().decode()), file.get_tensor("heads")
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        at += math.prod(shape)
        return weights[at - math.prod(shape) : at].view(shape)

    groups: dict[str, list[Candidate]] = {}
    for name, entries in stored["groups"].items():
        groups[name] = []
        for entry in entries:
            heads = tuple(
                Head(take(rows, columns), take(rows), take(_count(statistics)) if statistics else None)
                for rows, columns, statistics in entry["heads"]
            )
            point = OperatingPoint.from_dict(entry["point"])
            # Older files compare with the largest expert.
            versus = entry["versus_largest"] if "versus_largest" in entry else entry["versus_reference"]
            groups[name].append(Candidate(point, heads, tuple(versus)))
    return groups, stored["state"]
