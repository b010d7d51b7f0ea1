"""Running every expert once over a split; the outputs are cached on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub.constants import HF_HOME
from transformers.utils import logging

from ..data.batches import decoded_batches
from ..data.dataset import LabelledImages, raise_or, unusable
from ..experts.base import ExpertLike
from ..routing.costs import GMACS, PoolCosts
from ..utils.distributed import device_of
from ..utils.errors import PertinenceError
from ..utils.io import check_writable
from ..utils.progress import progress_bar
from .predictions import ExpertPredictions, Predictions, compress
from .store import ADVICE, identify, read_store, store_folder, write_store


logger = logging.get_logger(__name__)

BAD = "unreadable"
"""The tensor of a store that marks images that could not be decoded or given to an expert."""


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
    """Run every expert over the images, or read its outputs from the cache.

    Args:
        pool: experts by rising cost.
        images: labelled images; each process decodes and classifies its share, in batches of consecutive rows.
        accelerator: device and processes.
        stem: a separate stem, whose features are kept.
        features_of: experts whose pooled features are kept, too.
        objective: the unit of cost that the search minimises; the entry of each expert has it.
        batch_size, num_workers: images per call of an expert; number of processes that decode.
        cache_dir: default `$HF_HOME/pertinence`.
        on_bad_image: "stop", or "skip": the predictions cover the images that can be decoded, and list the others.

    Raises:
        PertinenceError: an image cannot be decoded (with "skip": no image can), or the scores of an expert are NaN or
            infinite.
    """
    root = Path(cache_dir or Path(HF_HOME) / "pertinence") / "predictions"
    runner = _Runner(images, accelerator, root, batch_size, num_workers, on_bad_image == "stop")
    kept, cached = zip(*(runner.keep(expert, index in features_of) for index, expert in enumerate(pool)), strict=True)
    of_stem = None if stem is None else runner.keep(stem, True)[0]
    experts = [ExpertPredictions.from_tensors(one, expert.num_labels) for one, expert in zip(kept, pool, strict=True)]
    labels = images.labels if images.labels is not None else torch.zeros(len(images), dtype=torch.int64)
    predictions = replace(Predictions.of_pool(experts, labels, pool_costs(pool, stem, objective)), cached=sum(cached))
    if len(images.digests) == len(images):
        predictions = replace(predictions, digests=images.digests)
    if of_stem is not None:
        # Only the features of a stem are used.
        predictions = replace(predictions, stem=ExpertPredictions.from_tensors(of_stem, of_stem["scores"].shape[1]))
    marks = [one[BAD] for one in (*kept, of_stem) if one is not None and BAD in one]
    if not marks:
        return predictions
    is_bad = torch.stack(marks).any(0)
    bad = is_bad.nonzero().squeeze(1).tolist()
    reason = _why(images, bad[0], [*pool, *filter(None, [stem])])
    if on_bad_image == "stop" or is_bad.all():
        raise reason
    predictions = replace(predictions.subset((~is_bad).nonzero().squeeze(1)), skipped=tuple(bad))
    if accelerator.is_main_process:
        logger.warning(f"{predictions.describe_skipped('images')}: {reason}")
    return predictions


def pool_costs(pool: Sequence[ExpertLike], stem: ExpertLike | None = None, objective: str = GMACS) -> PoolCosts:
    """Costs of experts and of a stem, from their entries: in GMACs, and in the unit of the objective."""
    units = dict.fromkeys((GMACS, objective))
    of_stem = {} if stem is None else {unit: stem.entry.costs[unit] for unit in units}
    return PoolCosts({unit: tuple(expert.entry.costs[unit] for expert in pool) for unit in units}, of_stem, objective)


def _why(images: LabelledImages, row: int, experts: Sequence[ExpertLike]) -> PertinenceError:
    """The error of an image that at least one expert could not take."""
    decoded = images[row]
    errors = (_problem(expert, decoded, images, row) for expert in experts)
    return next(error for error in errors if error is not None)


def _problem(expert: ExpertLike, decoded: Any, images: LabelledImages, row: int) -> PertinenceError | None:
    """The error if an expert cannot take an image; otherwise None."""
    if isinstance(decoded, PertinenceError):
        return decoded
    try:
        expert.entry.transform.check_image(*decoded.shape[-2:])
    except PertinenceError as error:
        return unusable(row, images.image_column, str(error))
    return None


@dataclass(frozen=True)
class _Runner:
    """Runs experts over images, or reads their outputs from the cache.

    Attributes:
        images, accelerator, batch_size, num_workers: see `predict`.
        root: folder of the cache.
        stops: whether an image that cannot be decoded is an error; otherwise it is marked.
    """

    images: LabelledImages
    accelerator: Accelerator
    root: Path
    batch_size: int
    num_workers: int
    stops: bool

    def keep(self, expert: ExpertLike, with_features: bool) -> tuple[dict[str, torch.Tensor], bool]:
        """The tensors of an expert, see `ExpertPredictions`, with `BAD` if an image is bad; and whether they were
        cached."""
        accelerator = self.accelerator
        identity = identify(expert, self.images, accelerator.device)
        folder = store_folder(self.root, expert, identity)
        tensors = read_store(folder, identity, with_features)
        if tensors is not None and BAD in tensors and self._has_healed(expert, tensors[BAD]):
            tensors = None
        if accelerator.num_processes > 1:
            # All processes must agree whether to run the expert: if the disk of one lacks the outputs, all run it.
            found = gather_object([tensors is not None])
            tensors = tensors if all(found) else None
        is_cached = tensors is not None
        if tensors is None:
            if accelerator.is_local_main_process:
                check_writable(self.root, ADVICE)
            tensors = self._run(expert, with_features)
            if accelerator.is_local_main_process:
                write_store(folder, identity, tensors)
            accelerator.wait_for_everyone()
        if not with_features:
            tensors.pop("features", None)
        return tensors, is_cached

    def _has_healed(self, expert: ExpertLike, is_bad: torch.Tensor) -> bool:
        """Whether an image that could not be decoded can be decoded now: a disk or a network may have been down."""
        rows = is_bad.nonzero().squeeze(1).tolist()
        return any(_problem(expert, self.images[row], self.images, row) is None for row in rows)

    def _run(self, expert: ExpertLike, with_features: bool) -> dict[str, torch.Tensor]:
        """Run an expert over all images; each process takes some of the batches."""
        accelerator, count = self.accelerator, len(self.images)
        batches = [range(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]
        mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
        loader = decoded_batches(self.images, [batches[index] for index in mine], self.num_workers)
        home, results = expert.device, []
        expert.to(device_of(accelerator))
        shown = f"Predictions of {expert.entry.name}"
        total = sum(len(batches[index]) for index in mine)
        with progress_bar(total, shown, "image", accelerator.is_local_main_process) as bar:
            for index, batch in zip(mine, loader, strict=True):
                results.append((index, self._run_batch(expert, batch, batches[index], with_features)))
                bar.update(len(batch))
        expert.to(home)
        if accelerator.num_processes > 1:
            results = sorted(gather_object(results), key=lambda item: item[0])
        joined = {key: torch.cat([kept[key] for _, kept in results]) for key in results[0][1]}
        if not joined[BAD].any():
            del joined[BAD]
        return joined

    def _run_batch(
        self, expert: ExpertLike, batch: list[Any], rows: Sequence[int], with_features: bool
    ) -> dict[str, torch.Tensor]:
        """The tensors to keep of an expert's outputs for a batch, in which errors stand for images that are bad."""
        problems = [_problem(expert, image, self.images, row) for image, row in zip(batch, rows, strict=True)]
        if self.stops:
            raise_or(list(filter(None, problems)))
        # A readable image replaces each one that cannot be read; its outputs are marked, and not used.
        usable = [image for image, problem in zip(batch, problems, strict=True) if problem is None]
        blank = usable[0] if usable else torch.zeros(3, *expert.entry.transform.size, dtype=torch.uint8)
        decoded = [blank if problem else image for image, problem in zip(batch, problems, strict=True)]
        # A batch of another size may run other kernels, and differ in the last bits; so the last batch is filled up.
        filled = decoded + decoded[:1] * (self.batch_size - len(batch))
        logits, features = (values[: len(batch)].cpu() for values in expert(filled, self.batch_size))
        kept = compress(logits)
        if with_features:
            kept["features"] = features
        kept[BAD] = torch.tensor([problem is not None for problem in problems])
        return kept
