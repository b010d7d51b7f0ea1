"""Evaluation of a saved model, and of the baselines that its search tuned, on other images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from transformers.utils import logging

from ..data.arguments import DataArguments
from ..data.dataset import LabelledImages, labelled
from ..data.loading import ImageSource, load_images
from ..data.seen import TOLERATED_SHARED, SeenImages
from ..hub.configuration import PertinenceConfig, open_config
from ..hub.layout import find_table_record
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..models.pretrained import commit_of
from ..predictions.arguments import LoadingArguments, RuntimeArguments
from ..predictions.predict import predict
from ..predictions.predictions import Predictions
from ..routing.costs import COSTS, GMACS, STEM
from ..routing.front import Front, OperatingPoint
from ..routing.metrics import AGREEMENT, Figures
from ..utils.distributed import make_accelerator
from ..utils.errors import PertinenceError
from .baselines import load_baselines
from .outcomes import evaluate_experts, looks_trained, looks_trained_here
from .report import Evaluation, evaluate_front


logger = logging.get_logger(__name__)

ModelSource: TypeAlias = str | os.PathLike[str] | PertinenceForImageClassification
"""Folder or Hub id, or a loaded model."""


def evaluate_model(
    model: ModelSource,
    data: ImageSource,
    args: RuntimeArguments | None = None,
    operating_point: str | None = None,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
    group_column: str | None = None,
) -> Evaluation:
    """Measure a model on images of a split: all its operating points, or one.

    Args:
        model: folder or Hub id, or a loaded model, which is used as it is.
        data: images, or where to load them; the search must not have used them.
        args: how experts run; `trust_remote_code` for those that come with code.
        operating_point: measure only the point of this name.
        expert_paths: new folders of local experts that have moved, by expert name.
        revision: branch, tag or commit on the Hub.
        group_column: column of the images by whose values the default point is compared with the reference expert,
            too (`Evaluation.by_group`); a `LabelledImages` must have been made with it.

    Raises:
        PertinenceError: there is no model, its experts or the images cannot be loaded, or they do not fit together.
    """
    args = args or RuntimeArguments()
    source, config = source_of(model), config_of(model, args.token, revision)
    config.build_front().find(operating_point)
    if group_column is not None and _agrees(config.build_front()):
        raise PertinenceError(
            "this model was searched without labels, so no group can lose accuracy that is known: leave the group "
            "column out"
        )
    images = open_images(config, data, args.token, group_column)  # before experts are loaded, which takes longer
    model = open_model(model, args, expert_paths, revision)
    beside = {"token": args.token, "revision": commit_of(model, revision)}
    front, default = model.front, model.front.find(operating_point or model.config.operating_point)
    if operating_point is not None:
        front = Front([default], front.expert_names)
    baselines = (
        {}
        if operating_point is not None or source is None
        else load_baselines(source, len(front.expert_names), model.config.feature_sizes, **beside)
    )
    tuned = [candidate.point for candidates, _ in baselines.values() for candidate in candidates]
    predictions = predict_images(model, images, args, [*front, *tuned])
    heads = {point.name: model.dispatcher.heads(point) for point in front}
    select = [Figures.from_dict(entry.select) for entry in model.config.expert_entries if entry.select]
    select = select if len(select) == len(model.pool) else []
    warnings = []
    if images.num_copies:
        warnings.append(
            f"{images.num_copies} of {len(images.digests)} images are copies of others: intervals are too narrow."
        )
    seen = None if source is None else SeenImages.load(source, **beside)
    if seen is not None and seen.shared(images, "search") > TOLERATED_SHARED:
        warnings.append(f"{source} was searched on these very images: its figures on them are optimistic.")
    elif select and not _agrees(front):
        measured = [outcome.figures for outcome in evaluate_experts(predictions)]
        warnings += looks_trained(front.expert_names, select, measured, "these images")
        warnings += looks_trained_here(front.expert_names, measured, select)
    for warning in warnings:
        logger.warning(warning)
    if predictions.skipped:  # which was said when they were read
        warnings.insert(0, f"{predictions.describe_skipped('images')}.")
    return evaluate_front(
        front,
        heads,
        predictions,
        default.name,
        baselines,
        select,
        model.config.reference_index,
        warnings,
        cast(dict[int, str], model.config.id2label),
        None if images.groups is None else images.groups.select(predictions.rows),
        model.config.reference_temperature,
    )


def source_of(model: ModelSource) -> str | os.PathLike[str] | None:
    """The folder or Hub id with the files of a model's search; None if the model was not loaded from anywhere."""
    if not isinstance(model, PertinenceForImageClassification):
        return model
    name = model.name_or_path
    return name if name and (Path(name).is_dir() or commit_of(model, None)) else None


def config_of(model: ModelSource, token: str | bool | None = None, revision: str | None = None) -> PertinenceConfig:
    """The config of a model, without its experts.

    Raises:
        PertinenceError: there is no model.
    """
    if isinstance(model, PertinenceForImageClassification):
        return model.config
    if find_table_record(model) is not None:
        raise PertinenceError(
            f"{model} is the result of a search on a table of predictions: it has no models to run on images; "
            "search the table again with --report-split or --report-dataset"
        )
    return open_config(model, token, revision)


def open_model(
    model: ModelSource,
    args: LoadingArguments,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
    **more: Any,
) -> PertinenceForImageClassification:
    """Load a saved model and its experts, as `args` say and with `more` options of `from_pretrained`; see
    `evaluate_model`."""
    if isinstance(model, PertinenceForImageClassification):
        return model
    options = args.load_options
    pinned: dict[str, Any] = {} if revision is None else {"revision": revision}
    return PertinenceForImageClassification.from_pretrained(
        model,
        dtype=options.dtype,
        token=options.token,
        trust_remote_code=options.trust_remote_code,
        backend=options.backend,
        provider=options.provider,
        fold_batch_norms=options.fold_batch_norms,
        expert_paths=expert_paths,
        **pinned,
        **more,
    )


def open_images(
    config: PertinenceConfig, data: ImageSource, token: str | None = None, group_column: str | None = None
) -> LabelledImages:
    """Load images to measure a model on; labels are required, and checked, unless it was searched without labels."""
    needs_labels = not _agrees(config.build_front())
    if isinstance(data, DataArguments):
        images = load_images(data, token, needs_labels, group_column)
    else:
        images = labelled(data, needs_labels, group_column=group_column)
    images.match_labels(cast(dict[int, str], config.id2label))  # transformers makes its keys numbers
    return images


def predict_images(
    model: PertinenceForImageClassification,
    images: LabelledImages,
    args: RuntimeArguments,
    points: Sequence[OperatingPoint] | None = None,
) -> Predictions:
    """Predictions of every expert of a model, with the measure and the costs of its search.

    Args:
        model: a model with its experts.
        images: see `open_images`.
        args: how experts run.
        points: operating points to measure; default: all of the model's.
    """
    objective = next((point.select.objective for point in model.front if point.select is not None), GMACS)
    COSTS.require(objective, "the cost of this model's search")
    if not all(objective in entry.costs for entry in model.config.entries):
        objective = GMACS
    reading = {expert for point in points or model.front for expert in point.reads_features_of}
    predictions = predict(
        model.pool,
        images,
        make_accelerator(args.device),
        stem=model.stem,
        features_of=sorted(reading - {STEM}),
        objective=objective,
        **args.predict_options,
    )
    return predictions.agreeing() if _agrees(model.front) else predictions


def _agrees(front: Front) -> bool:
    return any(point.select is not None and point.select.measure == AGREEMENT for point in front)
