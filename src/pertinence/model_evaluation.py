"""Measures a saved model, and the baselines that its search tuned, on other images."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .accelerators import make_accelerator
from .arguments import DataArguments, RuntimeArguments
from .candidates import load_baselines
from .data import load_images
from .errors import PertinenceError
from .files import RECORD, find_table_record
from .front import AGREEMENT, STEM, Figures, Front
from .modeling_pertinence import PertinenceForImageClassification
from .predictions import predict
from .report import Evaluation, evaluate_front


def evaluate_model(
    model_path: str | os.PathLike,
    data: DataArguments,
    args: RuntimeArguments,
    operating_point: str | None = None,
    expert_paths: dict[str, str] | None = None,
) -> Evaluation:
    """Measure a saved model on images of a split: all its operating points, or one.

    Args:
        model_path: folder or Hub id.
        data: which images; they must be none that the search has seen.
        args: how experts are run; `trust_remote_code` for those that bring code.
        operating_point: measure only the point of this name.
        expert_paths: where local experts have moved to, folder by expert name.

    Raises:
        PertinenceError: there is no model, its experts or the images cannot be loaded, or do not fit together.
    """
    if find_table_record(model_path) is not None:
        raise PertinenceError(
            f"{model_path} is the result of a search on a table of predictions: it has no models to run on images; "
            "search the table again with --report-split or --report-dataset"
        )
    options = args.load_options
    model = PertinenceForImageClassification.from_pretrained(
        model_path,
        dtype=options.dtype,
        token=options.token,
        trust_remote_code=options.trust_remote_code,
        expert_paths=expert_paths,
    )
    front, default = model.front, model.config.operating_point or model.front[-1].name
    agrees = any(point.select is not None and point.select.measure == AGREEMENT for point in front)
    images = load_images(data, args.token, needs_labels=not agrees)
    images.check_labels(model.config.id2label)
    if operating_point is not None:
        default = front.find(operating_point).name
        front = Front([front.find(default)], front.expert_names)
    reading = {stage.after for point in front for stage in point.decisions if stage.evidence != "mix"}
    predictions = predict(
        model.experts,
        images,
        make_accelerator(args.device),
        stem=model.stem,
        features_of=sorted(reading - {STEM}),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        cache_dir=args.cache_dir,
    )
    if agrees:
        predictions = predictions.agreeing()
    entries = [*model.config.experts, *filter(None, [model.config.stem])]
    if all(entry.get("latency") is not None for entry in entries):
        predictions = predictions.with_latency([entry["latency"] for entry in entries])
    heads = {point.name: model.dispatcher.heads(point) for point in front}
    select = [entry["select"] and Figures.from_dict(entry["select"]) for entry in model.config.experts]
    baselines = {} if operating_point is not None else load_baselines(model_path, options.token)
    warnings = []
    if images.fingerprint == _searched_on(Path(model_path)):
        warnings.append(f"{model_path} was searched on these very images: its figures on them are optimistic.")
    return evaluate_front(front, heads, predictions, default, baselines, select if all(select) else (), warnings)


def _searched_on(folder: Path) -> str | None:
    """Fingerprint of the search images, where the record of the search lies beside the model."""
    try:
        return json.loads((folder / RECORD).read_text())["settings"]["images"]["search"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
