"""Outcomes of operating points, experts and the oracle on cached predictions, and warnings about experts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..data.labels import BY_NAME
from ..predictions.predictions import ROWS_AT_ONCE, Predictions
from ..routing.confidence import count_answers
from ..routing.front import OperatingPoint
from ..routing.heads import Head
from ..routing.metrics import ACCURACY, Figures
from ..routing.policy import Routing, route
from ..routing.sweep import allowed_actions
from ..utils.errors import PertinenceError
from .intervals import auroc, paired_difference, wilson_interval


HARDLY = 0.1
"""Up to this share of the way from chance to perfection, an accuracy counts as hardly better than chance."""
LEAK_Z = 4.0
TRAINED_Z = 3.0
"""Standard errors by which an expert is more accurate on images that look like its training images: of an evaluation a
smaller lead is told, as nothing is fitted to it."""
LEAK_CHEAPEST = 0.95


@dataclass(frozen=True)
class Outcome:
    """The outcome of n images.

    Attributes:
        correct: bool (n,), whether each answer is right.
        costs: float64 (n,), in the unit of the objective.
        figures: summary of the outcome.
        answers: int64 (N, 32), number of answers by expert that ran last and by confidence; only of operating points.
        last: int64 (n,), the expert that ran last; only of operating points.
    """

    correct: torch.Tensor
    costs: torch.Tensor
    figures: Figures
    answers: torch.Tensor | None = None
    last: torch.Tensor | None = None

    def disagreements(self, other: Outcome) -> tuple[int, int]:
        """Wins and losses: number of images that only this outcome, and that only the other gets right."""
        return int((self.correct & ~other.correct).sum()), int((~self.correct & other.correct).sum())

    def versus(self, other: Outcome) -> tuple[float, float]:
        """Mean difference of accuracy on the same images, and its standard error."""
        return paired_difference(*self.disagreements(other), len(self.correct))


def evaluate_point(point: OperatingPoint, heads: Sequence[Head], predictions: Predictions) -> Outcome:
    """Route images through an operating point on cached predictions, with the code that the model itself runs."""
    correct, costs, counts, last = [], [], [], []
    for chunk, routing in route_predictions(point, heads, predictions):
        correct.append(routing.logits.argmax(1) == chunk.target_columns)
        costs.append(routing.costs)
        last.append(routing.expert_indices)
        counts.append(count_answers(routing.logits, routing.expert_indices, predictions.num_experts, predictions.tail))
    approximate = predictions.candidates is not None and bool(point.stages)
    answers = torch.stack(counts).sum(0)
    shares = answers.sum(1) / len(predictions)
    spent = {unit: torch.cat([part[unit] for part in costs]) for unit in costs[0]}
    outcome = summarise(predictions, torch.cat(correct), spent, shares, approximate)
    return replace(outcome, answers=answers, last=torch.cat(last))


def route_predictions(
    point: OperatingPoint, heads: Sequence[Head], predictions: Predictions, threshold: float | None = None
) -> Iterator[tuple[Predictions, Routing]]:
    """Route images through an operating point in parts; yields the predictions of each part and their `Routing`.

    Args:
        point, heads, predictions: the point, and outputs of the experts.
        threshold: see `routing.sweep.sweep`.
    """
    for rows in torch.arange(len(predictions)).split(ROWS_AT_ONCE):
        chunk = predictions.subset(rows)
        tail = predictions.tail
        yield chunk, route(point, heads, chunk.outputs, len(chunk), predictions.costs, tail=tail, threshold=threshold)


def summarise(
    predictions: Predictions,
    correct: torch.Tensor,
    costs: Mapping[str, torch.Tensor],
    shares: torch.Tensor,
    approximate: bool = False,
) -> Outcome:
    """Summarise n images: correct, bool (n,); costs by unit, float64 (n,); share of each expert, (N,)."""
    accuracy = correct.sum().item() / len(correct)
    figures = Figures(
        accuracy,
        wilson_interval(accuracy, len(correct)),
        {unit: spent.mean().item() for unit, spent in costs.items()},
        tuple(shares.tolist()),
        len(correct),
        approximate,
        predictions.costs.objective,
        predictions.measure,
    )
    return Outcome(correct, costs[figures.objective], figures)


def evaluate_experts(predictions: Predictions) -> list[Outcome]:
    """Outcome of each expert alone on all images."""
    correct = predictions.correct()
    everywhere = torch.ones(len(correct), dtype=torch.int64)
    return [_evaluate_choice(predictions, correct, index * everywhere) for index in range(correct.shape[1])]


def evaluate_oracle(predictions: Predictions) -> Outcome:
    """Outcome of the oracle router: the cheapest right expert of each image, or the cheapest one if none is right; the
    oracle itself costs nothing."""
    correct = predictions.correct()
    return _evaluate_choice(predictions, correct, correct.int().argmax(1))


def _evaluate_choice(predictions: Predictions, correct: torch.Tensor, choice: torch.Tensor) -> Outcome:
    """Outcome of running one expert on each image: correct, bool (n, N), and the chosen expert, int64 (n,)."""
    costs = {unit: torch.from_numpy(predictions.costs.alone(unit))[choice] for unit in predictions.costs.values}
    shares = torch.bincount(choice, minlength=correct.shape[1]) / len(choice)
    right = correct.gather(1, choice.unsqueeze(1)).squeeze(1)
    return summarise(predictions, right, costs, shares)


def routing_auroc(point: OperatingPoint, heads: Sequence[Head], predictions: Predictions) -> dict[int, float]:
    """How well the decisions predict that an expert suffices: AUROC by expert, over the images that reach a decision.

    The score of an expert at a decision is the score of its action minus the largest other one. If there is a single
    decision, every allowed expert is rated, and positives are the images on which it is the cheapest right expert.
    In a cascade the expert that has just run is rated, and positives are the images that it gets right.

    Returns:
        AUROC by pool index, for experts that have both positives and negatives.
    """
    margins: dict[int, list[torch.Tensor]] = {}
    positives: dict[int, list[torch.Tensor]] = {}
    for chunk, routing in route_predictions(point, heads, predictions):
        correct = chunk.correct()
        for stage, scores in zip(point.decisions, routing.scores.unbind(1), strict=True):
            allowed = torch.from_numpy(allowed_actions(point, stage, correct.shape[1]))
            reached = ~scores.isnan().all(1)
            cheapest = torch.where((correct & allowed).any(1), (correct & allowed).int().argmax(1), -1)
            scores = scores.nan_to_num(-torch.inf, neginf=-torch.inf)
            for expert in [stage.after] if len(point.decisions) > 1 else allowed.nonzero().flatten().tolist():
                others = scores.index_fill(1, torch.tensor([expert]), -torch.inf).max(1).values
                margins.setdefault(expert, []).append((scores[:, expert] - others)[reached])
                positives.setdefault(expert, []).append((cheapest == expert)[reached])
    values = {e: auroc(torch.cat(margins[e]).numpy(), torch.cat(positives[e]).numpy()) for e in margins}
    return {expert: value for expert, value in values.items() if value is not None}


def check_better_than_chance(names: Sequence[str], figures: Sequence[Figures], num_labels: int) -> list[str]:
    """Refuse an expert that is certainly hardly better than chance: its labels cannot be those of the images.

    Returns:
        Warnings about experts that may be no better than chance, if there are too few images to tell; a weak expert
        with few labels looks the same.
    """
    warnings = []
    for sentence, is_certain in near_chance(names, figures, num_labels):
        if is_certain:
            raise PertinenceError(sentence)
        warnings.append(f"{sentence}; more images would tell.")
    return warnings


def near_chance(names: Sequence[str], figures: Sequence[Figures], num_labels: int) -> list[tuple[str, bool]]:
    """A sentence on each expert that is not clearly better than chance, and whether it certainly is hardly better."""
    chance, found = 1 / num_labels, []
    for name, measured in zip(names, figures, strict=True):
        spread = 2 * math.sqrt(chance * (1 - chance) / measured.samples)
        if measured.accuracy > chance + spread:
            continue
        sentence = (
            f"expert {name!r} is right on {100 * measured.accuracy:.2f} % of {measured.samples} images, no better "
            f"than chance among {num_labels} labels: check the order of its labels ({BY_NAME}) and its preprocessing"
        )
        found.append((sentence, measured.accuracy + spread < chance + HARDLY * (1 - chance)))
    return found


def reference_warnings(names: Sequence[str], outcomes: Sequence[Outcome], reference: int) -> list[str]:
    """What a user should know of the expert that losses and savings refer to, if it is not the obvious one.

    Args:
        names: names of the experts, by rising cost.
        outcomes: outcome of each on the search images.
        reference: the most accurate one (see `Predictions.reference`).
    """
    best, warnings, name = outcomes[reference], [], names[reference]
    for index in range(reference + 1, len(names)):
        difference, error = best.versus(outcomes[index])
        worse = "right on the same images" if not error else f"{_points(difference, error)} less accurate"
        more = "more" if outcomes[index].figures.cost > best.figures.cost else "as much"
        warnings.append(
            f"Losses and savings refer to {name!r}, the most accurate expert on the search images. {names[index]!r} "
            f"is dominated: it is {worse}, and costs {more}."
        )
    if (rival := cheaper_rival(names, outcomes, reference)) is not None:
        warnings.append(f"{rival}.")
    return warnings


def cheaper_rival(names: Sequence[str], outcomes: Sequence[Outcome], reference: int) -> str | None:
    """A clause on the cheapest expert that is not measurably less accurate than the reference, if there is one."""
    for index in range(reference):
        difference, error = outcomes[reference].versus(outcomes[index])
        if difference <= error:
            return (
                f"{names[index]!r} costs less than {names[reference]!r}, and is not measurably less accurate on the "
                f"search images ({_points(difference, error)})"
            )
    return None


def _points(difference: float, error: float) -> str:
    return f"{100 * difference:.2f} ± {100 * error:.2f} points"


def leak_warnings(
    names: Sequence[str], search: Predictions, searched: Sequence[Outcome], reported: Sequence[Outcome]
) -> list[str]:
    """Warnings that experts look trained on the search images.

    On an expert's own training images, the cheapest right expert tells nothing about unseen images.
    """
    if search.measure != ACCURACY:
        return []  # an expert's own predictions as labels say nothing about its training
    seen, unseen = ([outcome.figures for outcome in part] for part in (searched, reported))
    warnings = looks_trained(names, seen, unseen, "the report images")
    correct = search.correct()
    solved = correct[correct.any(1)]
    cheapest = solved[:, 0].double().mean().item() if len(solved) else 0.0
    if cheapest > LEAK_CHEAPEST:
        warnings.append(
            f"The cheapest expert is right on {100 * cheapest:.1f} % of the search images that any expert gets right: "
            "either these images trained the experts, or there is almost nothing left for a dispatcher to gain."
        )
    return warnings


def looks_trained(names: Sequence[str], seen: Sequence[Figures], unseen: Sequence[Figures], others: str) -> list[str]:
    """Warnings about experts that are significantly more accurate on the search images (`seen`) than on others.

    Args:
        names: names of the experts.
        seen, unseen: figures of each expert on the search images and on the other images.
        others: what the warnings call the other images.
    """
    warnings = []
    for name, ours, theirs in zip(names, seen, unseen, strict=True):
        if _lead(ours, theirs) > LEAK_Z:
            warnings.append(
                f"Expert {name!r} is right on {100 * ours.accuracy:.2f} % of the search images, but on "
                f"{100 * theirs.accuracy:.2f} % of {others}: it looks trained on the search images (or {others} are "
                "harder). Search on images that no expert was trained on."
            )
    return warnings


def looks_trained_here(names: Sequence[str], measured: Sequence[Figures], select: Sequence[Figures]) -> list[str]:
    """At most one warning, if experts are significantly more accurate on the images of an evaluation (`measured`) than
    on the search images (`select`)."""
    leads = [_lead(ours, theirs) for ours, theirs in zip(measured, select, strict=True)]
    largest = max(range(len(names)), key=leads.__getitem__)
    if leads[largest] <= TRAINED_Z:
        return []
    return [
        f"Expert {names[largest]!r} is right on {100 * measured[largest].accuracy:.2f} % of these images, but on "
        f"{100 * select[largest].accuracy:.2f} % of the search images: experts look trained on these images "
        "(or these are easier), and then the figures say nothing about others."
    ]


def _lead(ours: Figures, theirs: Figures) -> float:
    """By how many standard errors an accuracy exceeds that on other images."""
    right = ours.accuracy * ours.samples + theirs.accuracy * theirs.samples
    pooled = right / (ours.samples + theirs.samples)
    error = math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / ours.samples + 1 / theirs.samples))
    return (ours.accuracy - theirs.accuracy) / error if error else 0.0
