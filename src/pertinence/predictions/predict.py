"""Predictions: what every expert says about every image of a split, computed once and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub.constants import HF_HOME
from transformers.utils import logging

from ..data.dataset import LabelledImages, raise_or, unusable
from ..experts.base import ExpertLike
from ..routing.costs import GMACS, PoolCosts
from ..utils.errors import PertinenceError
from ..utils.io import check_writable
from ..utils.progress import progress_bar
from .predictions import ExpertPredictions, Predictions, compress
from .store import ADVICE, identify, read_store, store_folder, write_store


logger = logging.get_logger(__name__)

BAD = "unreadable"
"""The tensor of a store that marks images of which an expert could be given nothing."""


def predict(
    pool: Sequence[ExpertLike],
    images: LabelledImages,
    accelerator: Accelerator,
    *,
    stem: ExpertLike | None = None,
    features_of: Sequence[int] = (),
    objective: str = GMACS,
    batch_size: int = 64,
    num_workers: int = 0,
    cache_dir: str | os.PathLike | None = None,
    on_bad_image: str = "stop",
) -> Predictions:
    """Run every expert over the images, or take what the cache has.

    Args:
        pool: experts by rising cost.
        images: each process decodes and classifies its share, in batches cut by row.
        accelerator: device and processes.
        stem: a network whose features are kept, too.
        features_of: experts whose pooled features are kept, too.
        objective: the unit of cost that a search minimises; the entry of each expert has it.
        batch_size, num_workers: images that an expert receives at once; processes that decode.
        cache_dir: default `$HF_HOME/pertinence`.
        on_bad_image: "stop", or "skip": predictions are of the images that can be decoded, and name the others.

    Raises:
        PertinenceError: an image that cannot be decoded (with "skip": none that can), or an expert that answers with
            NaN.
    """
    root = Path(cache_dir or Path(HF_HOME) / "pertinence") / "predictions"
    is_bad = torch.zeros(len(images), dtype=torch.bool)

    def ask(expert: ExpertLike, with_features: bool) -> dict[str, torch.Tensor]:
        identity = identify(expert, images, accelerator.device)
        folder = store_folder(root, expert, identity)
        tensors = read_store(folder, identity, with_features)
        if tensors is not None and BAD in tensors and _has_healed(expert, images, tensors[BAD]):
            tensors = None
        if accelerator.num_processes > 1:
            # All processes must agree on who has to run: one whose disk has no copy makes everybody run.
            found = gather_object([tensors is not None])
            tensors = tensors if all(found) else None
        if tensors is None:
            if accelerator.is_local_main_process:
                check_writable(root, ADVICE)
            stops = on_bad_image == "stop"
            tensors = _run(expert, images, accelerator, with_features, batch_size, num_workers, stops)
            if accelerator.is_local_main_process:
                write_store(folder, identity, tensors)
            accelerator.wait_for_everyone()
        if BAD in tensors:
            is_bad.logical_or_(tensors[BAD])
        if not with_features:
            tensors.pop("features", None)
        return tensors

    experts = [
        ExpertPredictions.from_tensors(ask(expert, index in features_of), expert.num_labels)
        for index, expert in enumerate(pool)
    ]
    labels = images.labels if images.labels is not None else torch.zeros(len(images), dtype=torch.int64)
    predictions = Predictions.of_pool(experts, labels, pool_costs(pool, stem, objective))
    if len(images.digests) == len(images):
        predictions = replace(predictions, digests=images.digests)
    if stem is not None:
        kept = ask(stem, True)
        # Of a stem only the features are read.
        predictions = replace(predictions, stem=ExpertPredictions.from_tensors(kept, kept["scores"].shape[1]))
    if not is_bad.any():
        return predictions
    bad = is_bad.nonzero().squeeze(1).tolist()
    reason = _why(images, bad[0], [*pool, *filter(None, [stem])])
    if on_bad_image == "stop" or is_bad.all():
        raise reason
    predictions = replace(predictions.subset((~is_bad).nonzero().squeeze(1)), skipped=tuple(bad))
    if accelerator.is_main_process:
        logger.warning(f"{predictions.describe_skipped('images')}: {reason}")
    return predictions


def pool_costs(pool: Sequence[ExpertLike], stem: ExpertLike | None = None, objective: str = GMACS) -> PoolCosts:
    """What experts, and a stem, cost by their entries: in GMACs, and in the unit of the objective."""
    units = dict.fromkeys((GMACS, objective))
    of_stem = {} if stem is None else {unit: stem.entry.costs[unit] for unit in units}
    return PoolCosts({unit: tuple(expert.entry.costs[unit] for expert in pool) for unit in units}, of_stem, objective)


def _has_healed(expert: ExpertLike, images: LabelledImages, is_bad: torch.Tensor) -> bool:
    """Whether an image that could not be decoded can be now: a disk or a network was away."""
    rows = is_bad.nonzero().squeeze(1).tolist()
    return any(_problem(expert, images[row], images, row) is None for row in rows)


def _why(images: LabelledImages, row: int, experts: Sequence[ExpertLike]) -> PertinenceError:
    """What is wrong with an image that at least one expert could not be given."""
    decoded = images[row]
    errors = (_problem(expert, decoded, images, row) for expert in experts)
    return next(error for error in errors if error is not None)


def _problem(expert: ExpertLike, decoded: Any, images: LabelledImages, row: int) -> PertinenceError | None:
    """Why an expert cannot be given an image, if so."""
    if isinstance(decoded, PertinenceError):
        return decoded
    try:
        expert.entry.transform.check_image(*decoded.shape[-2:])
    except PertinenceError as error:
        return unusable(row, images.image_column, str(error))
    return None


def _run(
    expert: ExpertLike,
    images: LabelledImages,
    accelerator: Accelerator,
    with_features: bool,
    batch_size: int,
    workers: int,
    stops: bool,
) -> dict[str, torch.Tensor]:
    batches = [list(range(start, min(start + batch_size, len(images)))) for start in range(0, len(images), batch_size)]
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    loader = torch.utils.data.DataLoader(
        images, batch_sampler=[batches[i] for i in mine], num_workers=workers, collate_fn=_no_collate
    )
    home = expert.device
    expert.to(accelerator.device)
    results = []
    name = expert.entry.name
    count = sum(len(batches[i]) for i in mine)
    with progress_bar(count, f"Predictions of {name}", "image", accelerator.is_local_main_process) as bar:
        for index, batch in zip(mine, loader, strict=True):
            problems = [_problem(expert, image, images, row) for image, row in zip(batch, batches[index], strict=True)]
            if stops:
                raise_or(problems)
            # In the place of what cannot be read stands an image that can: its answers are marked, and not used.
            usable = [image for image, problem in zip(batch, problems, strict=True) if problem is None]
            blank = usable[0] if usable else torch.zeros(3, *expert.entry.transform.size, dtype=torch.uint8)
            decoded = [blank if problem else image for image, problem in zip(batch, problems, strict=True)]
            # A batch of another size may run other kernels, whose last bits depend on what the process did before.
            filled = decoded + decoded[:1] * (batch_size - len(batch))
            logits, features = (values[: len(batch)].cpu() for values in expert(filled, batch_size))
            kept = compress(logits)
            if with_features:
                kept["features"] = features
            kept[BAD] = torch.tensor([problem is not None for problem in problems])
            results.append((index, kept))
            bar.update(len(batch))
    expert.to(home)
    if accelerator.num_processes > 1:
        results = sorted(gather_object(results), key=lambda item: item[0])
    joined = {key: torch.cat([kept[key] for _, kept in results]) for key in results[0][1]}
    if not joined[BAD].any():
        del joined[BAD]
    return joined


def _no_collate(batch: list[Any]) -> list[Any]:
    return batch
