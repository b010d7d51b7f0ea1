"""Calibration: the cheapest operating point whose loss against the reference expert is below a limit, with confidence.

Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei 2021, arXiv 2110.01052): each operating point has a null
hypothesis, "it loses at least the limit". Points whose hypothesis is rejected on separate images are guaranteed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.utils import logging

from ..data.dataset import LabelledImages
from ..data.loading import ImageSource
from ..data.seen import TOLERATED_SHARED, SeenImages
from ..hub.layout import update_config
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..models.pretrained import commit_of
from ..predictions.arguments import RuntimeArguments
from ..predictions.predictions import Predictions
from ..routing.budgets import check_loss
from ..routing.front import Front, OperatingPoint
from ..routing.guarantee import Comparison, Guarantee
from ..routing.metrics import ACCURACY
from ..utils.errors import PertinenceError
from .evaluate import ModelSource, config_of, open_images, open_model, predict_images, source_of
from .noninferiority import images_needed, noninferiority_p_value
from .outcomes import evaluate_experts, evaluate_point


logger = logging.get_logger(__name__)

MAX_CONFIDENCE = 0.999
EXCHANGEABLE = "images to come are like the calibration images (exchangeable with them)"
LABELS_RIGHT = "the labels of the calibration images are right"
CHOSEN_BEFORE = "limit and confidence were chosen before these images were used, which serve no other purpose"
AS_CALIBRATED = "the model runs as it was calibrated: these experts, {dtype}, {preprocessing} preprocessing"
SCORES_CUT = "scores were cut to the largest, so that answers of points that decide or mix are approximate"


def calibrate(
    model: ModelSource,
    data: ImageSource,
    args: RuntimeArguments | None = None,
    max_accuracy_loss: float = 0.005,
    confidence: float = 0.95,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
) -> Guarantee:
    """Guarantee the cheapest operating point that qualifies; `store_guarantee` stores the result.

    Args:
        model: folder or Hub id, or a loaded model, which is used as it is.
        data: calibration images, or where to load them; the search and its report must not have used them.
        args: how experts run; `trust_remote_code` for those that come with code.
        max_accuracy_loss: accuracy (0 to 1) that may be lost against the reference expert; for a model that was
            searched without labels, loss of agreement with it.
        confidence: probability, over draws of the images, that the guarantee holds.
        expert_paths: new folders of local experts that have moved, by expert name.
        revision: branch, tag or commit on the Hub.

    Raises:
        PertinenceError: no point qualifies (the message estimates how many images would be needed); or the search has
            seen the images.
    """
    check_loss("max_accuracy_loss", max_accuracy_loss)
    if max_accuracy_loss <= 0:
        raise PertinenceError(
            f"max_accuracy_loss={max_accuracy_loss:g} can never be guaranteed: give a share above 0, such as 0.005"
        )
    check_confidence(confidence)
    model, predictions, shared, fingerprint = predict_unseen(model, data, args, expert_paths, revision)
    tested, approximate = _test_points(model, predictions, max_accuracy_loss, confidence)
    qualified = [one for one in tested if one.p_value <= 1 - confidence]
    if not qualified:
        raise PertinenceError(
            f"no operating point can be guaranteed to lose less than {100 * max_accuracy_loss:g} points of "
            f"{predictions.measure} with {100 * confidence:g} % confidence: "
            + _shortfall(tested[0], len(predictions), max_accuracy_loss, confidence)
        )
    _warn_of_second_try(model.config.build_guarantee(), fingerprint, max_accuracy_loss, confidence)
    return Guarantee(
        qualified[-1].operating_point,
        max_accuracy_loss,
        confidence,
        len(predictions),
        fingerprint,
        tested,
        predictions.measure,
        shared,
        assumptions_of(model, predictions, approximate),
        model.config.expert_names[model.config.reference_index],
    )


class Unseen(NamedTuple):
    """Predictions for calibration images.

    Attributes:
        model: the model that made them.
        predictions: for different images that the search and its report have not used.
        shared: share of the images that they have used, and that are left out; None: unknown.
        fingerprint: that of all images.
    """

    model: PertinenceForImageClassification
    predictions: Predictions
    shared: float | None
    fingerprint: str


def predict_unseen(
    model: ModelSource,
    data: ImageSource,
    args: RuntimeArguments | None,
    expert_paths: dict[str, str] | None,
    revision: str | None,
) -> Unseen:
    """Run the experts of a model on calibration images; see `calibrate`."""
    args = args or RuntimeArguments()
    source, config = source_of(model), config_of(model, args.token, revision)
    images = open_images(config, data, args.token)  # before experts are loaded, which takes longer
    model = open_model(model, args, expert_paths, revision)
    shared, rows = check_unseen(source, images, args.token, commit_of(model, revision))
    predictions = predict_images(model, images, args)
    predictions = predictions.subset(torch.isin(predictions.rows, rows).nonzero().squeeze(1)).without_copies()
    return Unseen(model, predictions, shared, images.fingerprint)


def _test_points(
    model: PertinenceForImageClassification, predictions: Predictions, limit: float, confidence: float
) -> tuple[tuple[Comparison, ...], bool]:
    """Test the operating points of a model from the most expensive down; also whether a tested one is approximate."""
    reference = evaluate_experts(predictions)[model.config.reference_index]
    approximate = False

    def counts() -> Iterator[tuple[str, int, int]]:
        nonlocal approximate
        for point in by_falling_cost(model.front):
            outcome = evaluate_point(point, model.dispatcher.heads(point), predictions)
            approximate |= outcome.figures.approximate
            wins, losses = outcome.disagreements(reference)
            yield point.name, losses, wins

    tested = fixed_sequence(counts(), len(predictions), limit, confidence)
    return tested, approximate


def _warn_of_second_try(previous: Guarantee | None, fingerprint: str, limit: float, confidence: float) -> None:
    if (
        previous is not None
        and previous.images == fingerprint
        and (previous.max_accuracy_loss, previous.confidence) != (limit, confidence)
    ):
        logger.warning(
            f"These images have calibrated this model before, to {100 * previous.max_accuracy_loss:g} points with "
            f"{100 * previous.confidence:g} % confidence: only the first calibration on the same images is guaranteed."
        )


def assumptions_of(
    model: PertinenceForImageClassification, predictions: Predictions, approximate: bool
) -> tuple[str, ...]:
    """The assumptions of a guarantee, as sentences."""
    assumptions = [EXCHANGEABLE, LABELS_RIGHT] if predictions.measure == ACCURACY else [EXCHANGEABLE]
    if predictions.skipped:
        assumptions.append(f"images that cannot be decoded do not count; {len(predictions.skipped)} were left out")
    dtype = str(model.dtype).removeprefix("torch.")
    assumptions += [CHOSEN_BEFORE, AS_CALIBRATED.format(dtype=dtype, preprocessing=model.config.preprocessing)]
    return (*assumptions, SCORES_CUT) if approximate else tuple(assumptions)


def check_confidence(confidence: float) -> None:
    """Raise `PertinenceError` unless a promise can have this confidence."""
    if not 0 < confidence <= MAX_CONFIDENCE:
        raise PertinenceError(f"confidence must lie between 0 and {MAX_CONFIDENCE}, got {confidence}")


def by_falling_cost(front: Front) -> list[OperatingPoint]:
    """Operating points from the most expensive down, by the estimates of the search, so that calibration images do not
    affect the order."""
    points = list(front)
    figures = {point.name: point.select for point in points if point.select is not None}
    if len(figures) == len(points):
        points.sort(key=lambda point: (figures[point.name].cost, figures[point.name].accuracy))
    return points[::-1]


def fixed_sequence(
    counts: Iterable[tuple[str, int, int]], samples: int, limit: float, confidence: float
) -> tuple[Comparison, ...]:
    """Fixed sequence testing: test hypotheses in order, each at the full level, up to the first that is not rejected.

    The first true hypothesis in the order is rejected with probability at most 1 - confidence, and unless it is
    rejected, nothing after it is tested. So the probability of any wrong rejection has the same bound.

    Args:
        counts: name, losses and wins of each point, in an order that does not depend on the images.
        samples: number of images.
        limit: limit of the loss.
        confidence: joint confidence of all guarantees.

    Returns:
        The tested points; only the hypothesis of the last may not have been rejected.
    """
    tested = []
    for name, losses, wins in counts:
        tested.append(Comparison(name, losses, wins, noninferiority_p_value(losses, wins, samples, limit)))
        if tested[-1].p_value > 1 - confidence:
            break
    return tuple(tested)


def check_unseen(
    source: str | os.PathLike[str] | None,
    images: LabelledImages,
    token: str | None = None,
    revision: str | None = None,
) -> tuple[float | None, torch.Tensor]:
    """Refuse images that the search of a model or its report has seen; a small share of them is only left out.

    Returns:
        The share of images left out, or None if the model does not record the images of its search; and the rows that
        remain.
    """
    seen = None if source is None else SeenImages.load(source, token, revision)
    everything = torch.arange(len(images))
    if seen is None:
        logger.warning(
            f"{source or 'The model'} does not say which images its search has seen: make sure that these are others."
        )
        return None, everything
    shared, rows = seen.shared(images), seen.unseen(images)
    # Unless every image is hashed, it is unknown which ones to leave out.
    if shared > TOLERATED_SHARED or (rows is None and shared > 0):
        raise PertinenceError(
            f"about {max(1, round(shared * len(images)))} of the {len(images)} calibration images took part in the "
            f"search of {source} or in its report: calibrate on other images"
        )
    return shared, everything if rows is None else torch.from_numpy(rows)


def store_guarantee(folder: str | os.PathLike[str], guarantee: Guarantee) -> None:
    """Store a guarantee in the config.json of a saved model, and make its operating point the default.

    Raises:
        PertinenceError: the model is not in a local folder.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise PertinenceError(f"{folder} is not a local folder, so the guarantee cannot be stored: download it first")
    update_config(path, {"guarantee": guarantee.to_dict(), "operating_point": guarantee.operating_point})


def _shortfall(tested: Comparison, samples: int, limit: float, confidence: float) -> str:
    """Explain why a point does not qualify, and what would help."""
    loss = 100 * (tested.losses - tested.wins) / samples
    what = f"the most expensive, {tested.operating_point!r}, loses {loss:.2f} points on {samples} images"
    needed = images_needed(tested.losses, tested.wins, samples, limit, confidence)
    if needed is None:
        return f"{what}, which is not below the limit; more images alone would not help, so allow a larger loss"
    return f"{what} (p-value {tested.p_value:.3f}); at this rate about {needed:,} images would be needed"
