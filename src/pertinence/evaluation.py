"""Figures on cached predictions: accuracy and cost of operating points, experts, random mixes and the oracle."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from .accelerators import make_accelerator
from .arguments import DataArguments, RuntimeArguments
from .data import load_images
from .dispatcher import Head, route
from .errors import PertinenceError
from .front import Figures, Front, OperatingPoint, as_plain, figure_cells, format_table
from .modeling_pertinence import PertinenceForImageClassification
from .predictions import Predictions, predict


ROWS_AT_ONCE = 8192
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Outcome:
    """What an operating point did with n images: right or wrong, bool (n,), and its figures."""

    correct: torch.Tensor
    figures: Figures


def evaluate_point(point: OperatingPoint, heads: Sequence[Head], predictions: Predictions) -> Outcome:
    """Route images through an operating point on cached predictions, by the code that the model itself runs."""
    correct, gmacs, shares = [], [], torch.zeros(len(predictions.gmacs), dtype=torch.float64)
    for rows in torch.arange(len(predictions)).split(ROWS_AT_ONCE):
        chunk = predictions.subset(rows)
        routing = route(point, heads, chunk.answer, len(chunk), predictions.gmacs)
        correct.append(routing.logits.argmax(1) == chunk.targets)
        gmacs.append(routing.gmacs)
        shares += torch.bincount(routing.expert_indices, minlength=len(shares))
    measured = outcome(torch.cat(correct), torch.cat(gmacs), shares / len(predictions))
    approximate = predictions.is_approximate and any(stage.mixing is not None for stage in point.stages)
    return replace(measured, figures=replace(measured.figures, approximate=approximate))


def outcome(correct: torch.Tensor, gmacs: torch.Tensor, shares: torch.Tensor) -> Outcome:
    """Figures of n images: right or wrong bool (n,), cost (n,), share of each expert (N,)."""
    accuracy = correct.double().mean().item()
    interval = wilson_interval(accuracy, len(correct))
    figures = Figures(accuracy, interval, gmacs.double().mean().item(), tuple(shares.tolist()), len(correct))
    return Outcome(correct, figures)


def evaluate_experts(predictions: Predictions) -> list[Outcome]:
    """Each expert alone on every image."""
    correct, count = predictions.correct(), len(predictions)
    shares = torch.eye(len(predictions.gmacs), dtype=torch.float64)
    return [
        outcome(correct[:, index], torch.full((count,), gmacs, dtype=torch.float64), shares[index])
        for index, gmacs in enumerate(predictions.gmacs)
    ]


def evaluate_oracle(predictions: Predictions) -> Outcome:
    """The cheapest expert that is right, for images that none gets right the cheapest; its own cost is not counted."""
    correct = predictions.correct()
    choice = correct.int().argmax(1)
    gmacs = torch.tensor(predictions.gmacs, dtype=torch.float64)[choice]
    shares = torch.bincount(choice, minlength=correct.shape[1]) / len(choice)
    return outcome(correct.any(1), gmacs, shares)


def random_mix_hull(experts: Sequence[Figures], gmacs: float) -> float:
    """Accuracy that a coin flip between two experts has at a mean cost: the upper hull of the static experts.

    Below the cheapest expert's cost it is that expert's; above the best one's it stays.
    """
    hull: list[tuple[float, float]] = []
    for x, y in sorted((figures.gmacs, figures.accuracy) for figures in experts):
        if hull and y <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], (x, y)):
            hull.pop()
        hull.append((x, y))
    costs, accuracies = zip(*hull, strict=True)
    return float(np.interp(gmacs, costs, accuracies))


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else math.inf


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` images (Wilson 1927)."""
    z2 = NORMAL_95**2
    centre = (accuracy + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL_95 * math.sqrt(accuracy * (1 - accuracy) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(correct: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Mean difference of accuracy on the same images, and its standard error; bool (n,) each."""
    difference = correct.double() - reference.double()
    return difference.mean().item(), difference.std(correction=0).item() / math.sqrt(len(difference))


def non_dominated(gmacs: Sequence[float], accuracy: Sequence[float]) -> list[int]:
    """Indices of the points that nothing dominates, by rising cost; of equal ones the first."""
    best, front = -math.inf, []
    for index in sorted(range(len(gmacs)), key=lambda i: (gmacs[i], -accuracy[i], i)):
        if accuracy[index] > best:
            best = accuracy[index]
            front.append(index)
    return front


def check_better_than_chance(names: Sequence[str], figures: Sequence[Figures], num_labels: int) -> None:
    """Refuse an expert whose accuracy could be that of guessing: its labels cannot be those of the images."""
    chance = 1 / num_labels
    for name, measured in zip(names, figures, strict=True):
        if measured.accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / measured.samples):
            raise PertinenceError(
                f"expert {name!r} is right on {100 * measured.accuracy:.2f} % of {measured.samples} images, no "
                f"better than chance among {num_labels} labels: check that its labels are those of the data set, in "
                "the same order (`label_map`), and that its preprocessing is its own"
            )


@dataclass(frozen=True)
class Evaluation:
    """A front and what it must be compared with, measured on the same images.

    Attributes:
        front: operating points whose `report` holds the figures measured here.
        default: name of the default operating point.
        experts: figures of each expert alone.
        oracle: figures of the perfect choice; its own cost is not counted.
        versus_largest: for each point, mean difference of accuracy to the largest expert on the same images, and its
            standard error.
    """

    front: Front
    default: str
    experts: tuple[Figures, ...]
    oracle: Figures
    versus_largest: tuple[tuple[float, float], ...]

    def hull(self, point: OperatingPoint) -> float:
        """Accuracy of a random mix of experts at the cost of a point."""
        return random_mix_hull(self.experts, point.report.gmacs)

    def to_dict(self) -> dict[str, Any]:
        points = [
            {
                "name": point.name,
                "recipe": point.recipe,
                **asdict(point.report),
                "random_mix": self.hull(point),
                "versus_largest": {"difference": difference, "standard_error": error},
            }
            for point, (difference, error) in zip(self.front, self.versus_largest, strict=True)
        ]
        experts = [{"name": n, **asdict(f)} for n, f in zip(self.front.expert_names, self.experts, strict=True)]
        return as_plain(
            {"operating_point": self.default, "front": points, "experts": experts, "oracle": asdict(self.oracle)}
        )

    def __repr__(self) -> str:
        names = self.front.expert_names
        header = ["", "accuracy", "95 % interval", "GMACs", *names, "saved", "vs largest", "vs random mix"]
        largest = self.experts[-1]
        rows = [[name, *figure_cells(f), "", "", ""] for name, f in zip(names, self.experts, strict=True)]
        rows.append(
            ["oracle", *figure_cells(self.oracle), f"{100 * (1 - self.oracle.gmacs / largest.gmacs):.1f} %", "", ""]
        )
        for point, (difference, error) in zip(self.front, self.versus_largest, strict=True):
            rows.append(
                [
                    f"{point.name}{' *' if point.name == self.default else ''}",
                    *figure_cells(point.report),
                    f"{100 * (1 - point.report.gmacs / largest.gmacs):.1f} %",
                    f"{100 * difference:+.2f} ± {100 * error:.2f}",
                    f"{100 * (point.report.accuracy - self.hull(point)):+.2f}",
                ]
            )
        below = [point.name for point in self.front if point.report.accuracy < self.hull(point)]
        notes = [f"{largest.samples} images; * default operating point; differences in points of accuracy."]
        if below:
            notes.append(f"Below a random mix of experts at the same cost: {', '.join(below)}.")
        return "\n".join([format_table(header, rows), *notes])


def evaluate_front(
    front: Front, heads: dict[str, Sequence[Head]], predictions: Predictions, default: str
) -> Evaluation:
    """Measure every operating point, the experts and the oracle on images that neither fitted nor chose anything.

    Args:
        front: operating points of the pool that made the predictions.
        heads: heads of each point by its name.
        predictions: of the images to report on.
        default: name of the default operating point.
    """
    experts = evaluate_experts(predictions)
    outcomes = [evaluate_point(point, heads.get(point.name, ()), predictions) for point in front]
    measured = [replace(point, report=result.figures) for point, result in zip(front, outcomes, strict=True)]
    return Evaluation(
        Front(measured, front.expert_names),
        default,
        tuple(result.figures for result in experts),
        evaluate_oracle(predictions).figures,
        tuple(paired_difference(result.correct, experts[-1].correct) for result in outcomes),
    )


def evaluate_model(
    model_path: str | os.PathLike, data: DataArguments, args: RuntimeArguments, operating_point: str | None = None
) -> Evaluation:
    """Measure a saved model on images of a split: all its operating points, or one.

    Args:
        model_path: folder or Hub id.
        data: which images; they must be none that the search has seen.
        args: how experts are run; `trust_remote_code` for those that bring code.
        operating_point: measure only the point of this name.
    """
    options = args.load_options
    model = PertinenceForImageClassification.from_pretrained(
        model_path, dtype=options.dtype, token=options.token, trust_remote_code=options.trust_remote_code
    )
    images = load_images(data, args.token)
    images.check_labels(model.config.id2label)
    front, default = model.front, model.config.operating_point
    if operating_point is not None:
        default = front.find(operating_point).name
        front = Front([front.find(default)], front.expert_names)
    heads = {point.name: model.dispatcher.heads(point) for point in front}
    reading = {stage.after for point in front for stage in point.decisions if stage.evidence != "mix"}
    predictions = predict(
        model.experts,
        images,
        make_accelerator(args.device),
        features_of=sorted(reading),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        cache_dir=args.cache_dir,
    )
    return evaluate_front(front, heads, predictions, default)
