"""Promises of single answers: which images an operating point may answer so that few answers are wrong, and which
labels it cannot exclude.

**Error rates.** Fixed sequence testing of exact binomial hypotheses, as in selective classification with guaranteed
risk (Geifman and El-Yaniv 2017, arXiv 1705.08500) and Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei
2021, arXiv 2110.01052). Theorem: let the calibration images be independent draws from the distribution of the images
to come, and let thresholds t1, t2, ... be fixed before these images are seen. Of n images, A are answered at threshold
t, K of them wrongly; given A, K is binomial with the error rate R(t) of all images that are answered at t. So
P(B(A, a) <= K) is a valid p-value of "R(t) > a", whatever A is. Test t1, t2, ... at level d until the first is not
rejected, and take the last rejected: with probability at least 1 - d its error rate is at most a. For if no true
hypothesis is rejected, the promise holds; and a true one can only be rejected if the first true one in the sequence
is, which has probability at most d. Nothing needs to be monotone, so giving up early is a part of what is tested.
Several rates of one point share d (Bonferroni).

**Prediction sets.** Split conformal prediction: the threshold is the ceil((n + 1) c)-th smallest score of the right
labels. For exchangeable images the set of a new one contains its label with probability at least c, on average over
calibration images and new images.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import beta, binom
from transformers.utils import logging

from ..data.loading import ImageSource
from ..hub.layout import update_config
from ..predictions.arguments import RuntimeArguments
from ..predictions.predictions import Predictions
from ..routing.certainty import LARGEST
from ..routing.front import OperatingPoint
from ..routing.heads import Head
from ..routing.prediction_sets import label_scores
from ..routing.promises import CoveragePromise, ErrorPromise, Promises
from ..runtime.entry import CONFIG
from ..utils.errors import PertinenceError
from .calibration import assumptions_of, check_confidence, predict_unseen
from .evaluate import ModelSource
from .outcomes import route_predictions


logger = logging.get_logger(__name__)

STEPS = np.linspace(0, 1, 201)[1:]
"""Shares of the search images at whose thresholds an error rate is tested."""
MOST_VALUES = 20
"""Largest number of error rates, and of coverages, that are calibrated at once."""


def calibrate_answers(
    model: ModelSource,
    data: ImageSource,
    args: RuntimeArguments | None = None,
    max_error_rate: float | Sequence[float] = (),
    coverage: float | Sequence[float] = (),
    confidence: float = 0.95,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
) -> Promises:
    """Promise error rates and prediction sets for every operating point; `store_promises` stores the result.

    Args:
        model: folder or Hub id, or a loaded model, which is used as it is.
        data: calibration images, or where to load them; the search and its report must not have used them.
        args: how experts run; `trust_remote_code` for those that come with code.
        max_error_rate: one or several shares (0 to 1): at most so many of the answered images are wrong.
        coverage: one or several shares (0 to 1): in at least so many images the set contains the right label.
        confidence: probability, over draws of the images, that all error rates of a point hold.
        expert_paths: new folders of local experts that have moved, by expert name.
        revision: branch, tag or commit on the Hub.

    Raises:
        PertinenceError: a rate is impossible, the model was searched by an older version, or the search has seen the
            images.
    """
    rates, coverages = _shares("max_error_rate", max_error_rate), _shares("coverage", coverage)
    if not rates and not coverages:
        raise PertinenceError("there is nothing to promise: give `max_error_rate` or `coverage`")
    check_confidence(confidence)
    model, predictions, shared, fingerprint = predict_unseen(model, data, args, expert_paths, revision)
    if rates and not any(point.certainty is not None for point in model.front):
        raise PertinenceError(
            "this model does not know how certain its answers are, as it was not searched, or by an older version: "
            "search again to promise error rates"
        )
    previous = model.config.build_promises()
    if previous is not None and previous.images == fingerprint:
        logger.warning(
            "These images have calibrated this model before: only the first calibration on the same images is "
            "guaranteed."
        )
    errors, sets, approximate = [], [], False
    for point in model.front:
        heads = model.dispatcher.heads(point)
        approximate |= predictions.candidates is not None and bool(point.stages)
        errors += promise_errors(point, heads, predictions, rates, confidence)
        sets += promise_sets(point, heads, predictions, coverages)
    return Promises(
        confidence,
        len(predictions),
        fingerprint,
        tuple(errors),
        tuple(sets),
        predictions.measure,
        shared,
        assumptions_of(model, predictions, approximate),
    )


def promise_errors(
    point: OperatingPoint, heads: Sequence[Head], predictions: Predictions, rates: Sequence[float], confidence: float
) -> list[ErrorPromise]:
    """Calibrate error rates of one operating point; none if it does not know how certain its answers are.

    Args:
        point, heads: the point, with what it gives up.
        predictions: predictions for the calibration images.
        rates: limits of the error rate, which share the error probability.
        confidence: joint confidence of all of them.
    """
    if point.certainty is None or not rates:
        return []
    reached, right = answerable(point, heads, predictions)
    level = (1 - confidence) / len(rates)
    return [promise_error_from(point, reached, right, rate, level) for rate in rates]


def answerable(
    point: OperatingPoint, heads: Sequence[Head], predictions: Predictions
) -> tuple[np.ndarray, np.ndarray]:
    """The largest threshold at which each image is answered, float32 (n,), and whether that answer is right, (n,)."""
    reached, right = [], []
    for chunk, routing in route_predictions(point, heads, predictions, threshold=-2 * LARGEST):
        assert routing.log_odds is not None
        assert routing.outlook is not None
        reached.append(torch.minimum(routing.log_odds, routing.outlook))
        right.append(routing.logits.argmax(1) == chunk.target_columns)
    return torch.cat(reached).numpy(), torch.cat(right).numpy()


def error_p_values(answered: np.ndarray, wrong: np.ndarray, rate: float) -> np.ndarray:
    """Exact p-values of the hypotheses that more than `rate` of the answered images to come are wrong: (k,).

    Args:
        answered, wrong: (k,), numbers of images that are answered, and wrongly.
        rate: limit of the error rate.
    """
    return np.where(answered > 0, binom.cdf(wrong, answered, rate), 1.0)


def promise_error_from(
    point: OperatingPoint, reached: np.ndarray, right: np.ndarray, rate: float, level: float
) -> ErrorPromise:
    """Calibrate one error rate.

    Args:
        point: a point with a certainty.
        reached, right: its calibration images, as `answerable` gives them.
        rate: limit of the error rate.
        level: probability, over draws of the images, that it may be exceeded.
    """
    assert point.certainty is not None
    # Everything up to here, the first threshold included, depends on the search images and on n alone.
    thresholds, shares, shares_wrong, _ = point.certainty.along(STEPS)
    expected = error_p_values(np.round(shares * len(right)), np.ceil(shares_wrong * len(right)), rate)
    tested = thresholds[int(expected.argmin()) :].astype(np.float32)  # as the sweep compares them
    is_answered = reached >= tested[:, None]
    answered, wrong = is_answered.sum(1), (is_answered & ~right).sum(1)
    p_values = error_p_values(answered, wrong, rate)
    failed = np.flatnonzero(p_values > level)
    last = (failed[0] if len(failed) else len(tested)) - 1
    least = beta.ppf(1 - level, wrong[0] + 1, answered[0] - wrong[0]) if answered[0] > wrong[0] else 1.0
    at = max(last, 0)
    threshold = float(tested[at]) if last >= 0 else None
    return ErrorPromise(
        point.name, rate, threshold, int(answered[at]), int(wrong[at]), float(p_values[at]), float(least)
    )


def promise_sets(
    point: OperatingPoint, heads: Sequence[Head], predictions: Predictions, coverages: Sequence[float]
) -> list[CoveragePromise]:
    """Calibrate prediction sets of one operating point.

    Args:
        point, heads: the point.
        predictions: predictions for the calibration images.
        coverages: nominal coverages.
    """
    if not coverages:
        return []
    own, every = [], []
    for chunk, routing in route_predictions(point, heads, predictions):
        scores = label_scores(routing.logits, predictions.tail)
        own.append(scores.gather(1, chunk.target_columns.unsqueeze(1)).squeeze(1))
        scores.scatter_(1, routing.logits.argmax(1, keepdim=True), -torch.inf)
        every.append(scores)
    falling, sizes = torch.cat(own).sort().values.numpy(), torch.cat(every)
    promises = []
    for coverage in coverages:
        rank = math.ceil((len(falling) + 1) * coverage)
        threshold = float(falling[rank - 1]) if rank <= len(falling) else math.inf
        size = (sizes <= threshold).sum(1).double().mean().item()
        is_known = math.isfinite(threshold)
        found = threshold if is_known else None
        promises.append(
            CoveragePromise(point.name, coverage, found, size if is_known else float(predictions.num_labels))
        )
    return promises


def store_promises(folder: str | os.PathLike[str], promises: Promises) -> None:
    """Store promises in the config.json of a saved model, which answers every image until a budget uses them.

    Raises:
        PertinenceError: the model is not in a local folder.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise PertinenceError(f"{folder} is not a local folder, so the promises cannot be stored: download it first")
    update_config(path, {"promises": promises.to_dict(), "max_error_rate": None})


def _shares(name: str, given: float | Sequence[float]) -> list[float]:
    """Shares between 0 and 1, rising; raises `PertinenceError` if one is none."""
    values = sorted(set(given)) if isinstance(given, Sequence) else [given]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise PertinenceError(f"{name}={value} is out of range, expected a share between 0 and 1, such as 0.05")
    if len(values) > MOST_VALUES:
        raise PertinenceError(f"{len(values)} values of {name} are too many, expected at most {MOST_VALUES}")
    return [float(value) for value in values]
