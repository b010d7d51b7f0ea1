"""Advice before any search: is one model enough, which partners pay, and which experts of a large pool to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np

from ..data.dataset import LabelledImages, labelled
from ..data.splits import assign_folds, sample_rows
from ..evaluation.intervals import wilson_interval
from ..evaluation.outcomes import cheaper_rival, evaluate_experts, near_chance
from ..experts.pool import list_references, load_pool, pool_labels, warn_of_costs
from ..predictions.arguments import RuntimeArguments
from ..predictions.predict import predict
from ..predictions.predictions import Predictions
from ..predictions.tables import PredictionTable
from ..routing.costs import cost_unit
from ..runtime.entry import ExpertEntry
from ..utils.distributed import make_accelerator, one_thread
from ..utils.errors import PertinenceError
from ..utils.validation import is_commit
from .advice import Advice, ExpertAdvice
from .arguments import SearchArguments
from .nested import IN_AREA, OUTER_FOLDS, SAVINGS
from .pairs import PairStudy, RoutingCurve
from .recipes.chains import dominated, spaced
from .settings import pinned
from .sizes import measured_on
from .steps import hold_out


MAX_EXPERTS, MAX_IMAGES, MAX_TAKEN = 16, 5_000, 4
"""At most so many experts are compared in pairs, on at most so many images, and so many are advised."""


def advise(
    source: Sequence[Any] | PredictionTable,
    dataset: datasets.Dataset | LabelledImages | None = None,
    args: RuntimeArguments | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_map: str | None = None,
    report_fraction: float = 0.2,
) -> Advice:
    """Advise on a pool before any search: each expert runs once over the images, the rest takes seconds.

    Args:
        source: references of at least two experts (see `DispatcherSearch`), or a table of their predictions.
        dataset: labelled images that no expert was trained on; None for a table.
        args: how experts run.
        image_column, label_column, label_map: see `DispatcherSearch`.
        report_fraction: share of the images that the advice leaves out: those that a search on the same images holds
            out for its report, as they must not choose the experts. 0: none, if the search reports on others.

    Raises:
        PertinenceError: the experts do not fit together or do not fit the images, or there are no images.

    Examples:
        >>> advice = advise(["user/resnet8", "user/resnet56"], dataset)
        >>> advice.names
        ['resnet8', 'resnet56']
        >>> print(advice)  # doctest: +SKIP
    """
    args = args or RuntimeArguments()
    if isinstance(source, PredictionTable):
        if dataset is not None:
            raise PertinenceError("a table holds the predictions for its images: leave the data set out")
        return _without_report(source.names, source.predictions, report_fraction)
    if dataset is None:
        raise PertinenceError("advice on experts needs images to run them on: give a data set")
    pool = load_pool(list_references(source), args.load_options, label_map=label_map)
    images = labelled(dataset, True, image_column, label_column, label_map)
    images.match_labels(pool_labels(pool))
    pool = sorted(measured_on(pool, images), key=lambda expert: expert.entry.gmacs)
    warn_of_costs(pool)
    predictions = predict(pool, images, make_accelerator(args.device), **args.predict_options)
    advice = _without_report([expert.entry.name for expert in pool], predictions, report_fraction)
    return replace(advice, sources=tuple(_reference_of(expert.entry) for expert in pool))


def _reference_of(entry: ExpertEntry) -> str | None:
    """How a user names an expert: the folder, or the Hub id at the loaded commit; None for a loaded model."""
    commit = entry.revision if is_commit(entry.revision) else None
    return None if entry.repo_id is None else pinned(entry.repo_id, commit)


def _without_report(names: Sequence[str], predictions: Predictions, report_fraction: float) -> Advice:
    if not 0 <= report_fraction < 1:
        raise PertinenceError(f"report_fraction must lie between 0 and 1, got {report_fraction:g}")
    if not report_fraction:
        return advise_on(names, predictions)
    args = SearchArguments(report_fraction=report_fraction)
    kept, left_out = hold_out(predictions, args)
    note = f"The {len(left_out)} images that a search on these images holds out for its report were left out."
    advice = advise_on(names, kept)
    return replace(advice, notes=(note, *advice.notes))


@one_thread()
def advise_on(names: Sequence[str], predictions: Predictions, seed: int = 0) -> Advice:
    """Advise on a pool, from predictions alone.

    Args:
        names: names of the experts, by rising cost.
        predictions: predictions for labelled images that no expert was trained on.
        seed: random seed of the folds.

    Raises:
        PertinenceError: there are fewer than two experts.
    """
    if len(names) < 2:
        raise PertinenceError(f"advice needs at least two experts, got {len(names)}")
    sample = predictions.subset(sample_rows(len(predictions), MAX_IMAGES))
    reference = predictions.reference
    experts = _experts(names, predictions)
    hopeless = [one.dominated_by is not None and one.clearly for one in experts]
    among = tuple(index for index in range(len(names)) if index == reference or not hopeless[index])
    outcomes = evaluate_experts(predictions)
    figures = [outcome.figures for outcome in outcomes]
    notes = [
        f"{sentence[0].upper()}{sentence[1:]}{'; a search refuses it' if is_refused else '; more images would tell'}."
        for sentence, is_refused in near_chance(names, figures, predictions.num_labels)
    ]
    if (rival := cheaper_rival(names, outcomes, reference)) is not None:
        notes.append(f"{rival}: it may be enough alone.")
    if len(sample) < len(predictions):
        notes.append(f"Pairs are compared on {len(sample)} of {len(predictions)} images.")
    if len(among) > MAX_EXPERTS:
        among = tuple(sorted({*spaced(among, predictions.costs.of_experts, MAX_EXPERTS - 1), reference}))
        notes.append(f"Of the experts that none dominates, {len(among)} of spaced costs are compared in pairs.")
    study = PairStudy(sample, among, reference)
    curves = study.curves()
    if np.ptp(study.confidence(among[0])) < 1e-6:
        notes.append(
            "The predictions have no scores: routing by confidence cannot be judged, so pairs look worthless."
        )
    values = sorted((study.value(one) for one in curves if len(one.members) == 2), key=lambda one: -one.gain)
    taken, right = _take(study, curves, assign_folds(sample.targets, OUTER_FOLDS, seed, sample.copies).numpy())
    if (alone := _enough(study, taken, right)) is not None:
        taken = (alone,)
    difference = right - study.right[:, reference, None]
    mean, error = difference.mean(0), difference.std(0) / len(difference) ** 0.5
    lossless = SAVINGS[(mean >= error / 2) & (mean > 0)]
    return Advice(
        experts,
        reference,
        tuple(values),
        taken,
        float(lossless.max(initial=0.0)) if len(taken) > 1 else 0.0,
        {percent: (float(mean[percent]), float(error[percent])) for percent in (20, 40, 60)},
        cost_unit(predictions.costs.objective),
        len(sample),
        tuple(notes),
    )


def _experts(names: Sequence[str], predictions: Predictions) -> tuple[ExpertAdvice, ...]:
    correct, costs = predictions.correct(), predictions.costs.of_experts
    accuracy, clearly = correct.double().mean(0).tolist(), dominated(predictions, range(len(names)))
    found = []
    for index, name in enumerate(names):
        better = [
            other for other in range(index) if accuracy[other] >= accuracy[index] and costs[other] < costs[index]
        ]
        dominated_by = names[max(better, key=lambda other: accuracy[other])] if better else None
        interval = wilson_interval(accuracy[index], len(correct))
        found.append(ExpertAdvice(name, costs[index], accuracy[index], interval, dominated_by, index in clearly))
    return tuple(found)


def _take(study: PairStudy, curves: Sequence[RoutingCurve], folds: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """The experts to take, and whether each image is right at each saving by what was chosen on the other folds.

    Returns:
        Pool indices, rising; and float64 (n, S).
    """
    count = len(study.right)
    fold_of = np.empty(count, dtype=int)
    for fold, rows in enumerate(folds):
        fold_of[rows[rows >= 0]] = fold
    right = np.empty((count, len(SAVINGS)))
    for fold in range(len(folds)):
        train, held = fold_of != fold, fold_of == fold
        hull = study.hull_weights(train)
        chosen = _envelope(study, curves, _grow(study, curves, train), train, hull)
        right[held] = _along(study, curves, chosen, held, hull)
    return _grow(study, curves, np.ones(count, dtype=bool)), right


def _enough(study: PairStudy, taken: tuple[int, ...], right: np.ndarray) -> int | None:
    """The expert that does alone what was found, up to the noise of the images; None if there is none.

    It is the cheapest one (if several were taken, the cheapest of these) that is at most one paired standard error
    less accurate than the reference, if what was found (`right`, on images that did not choose it) gains no more than
    one over it where it saves less.
    """
    reference = study.right[:, study.reference].astype(float)
    for expert in study.among if len(taken) == 1 else taken[:1]:
        alone = study.right[:, expert]
        gain = (right[:, study.budgets >= study.costs[expert]] - alone[:, None]).mean(1)
        if _is_noise(reference - alone) and (len(taken) == 1 or _is_noise(gain)):
            return expert
    return None


def _is_noise(values: np.ndarray) -> bool:
    """Whether a mean is at most its standard error."""
    return bool(values.mean() <= values.std() / len(values) ** 0.5)


def _grow(study: PairStudy, curves: Sequence[RoutingCurve], rows: np.ndarray) -> tuple[int, ...]:
    """Add to the reference, one by one, the expert that gains most on some images, while it gains more than its paired
    standard error."""
    taken: tuple[int, ...] = (study.reference,)
    hull = study.hull_weights(rows)

    def of(members: tuple[int, ...]) -> np.ndarray:
        return _along(study, curves, _envelope(study, curves, members, rows, hull), rows, hull)[:, IN_AREA].mean(1)

    current = of(taken)
    while len(taken) < min(MAX_TAKEN, len(study.among)):
        candidates = [tuple(sorted((*taken, index))) for index in study.among if index not in taken]
        values = [of(candidate) for candidate in candidates]
        best = int(np.argmax([value.mean() for value in values]))
        difference = values[best] - current
        if _is_noise(difference - 1e-12):
            break
        taken, current = candidates[best], values[best]
    return taken


def _envelope(
    study: PairStudy, curves: Sequence[RoutingCurve], members: tuple[int, ...], rows: np.ndarray, hull: np.ndarray
) -> np.ndarray:
    """For each saving the best curve of some experts on some images: int64 (S,); -1: random routing among all single
    experts, which needs no search."""
    accuracy = np.full((len(curves) + 1, len(SAVINGS)), -1.0)
    for index, curve in enumerate(curves):
        if set(curve.members) <= set(members):
            accuracy[index] = np.where(curve.affordable, curve.right[rows].mean(0), -1.0)
    accuracy[-1] = study.right[rows].mean(0) @ hull.T
    best = accuracy.argmax(0)
    return np.where(best == len(curves), -1, best)


def _along(
    study: PairStudy, curves: Sequence[RoutingCurve], chosen: np.ndarray, rows: np.ndarray, hull: np.ndarray
) -> np.ndarray:
    """Whether some images are right at each saving by the chosen curves: float64 (m, S)."""
    right = study.right[rows] @ hull.T
    for index in np.unique(chosen[chosen >= 0]).tolist():
        at = chosen == index
        right[:, at] = curves[index].right[rows][:, at]
    return right
