"""Predictions: what every expert says about every image of a split, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from .data import LabelledImages, raise_or
from .dispatcher import TOP_LABELS, Answer
from .errors import PertinenceError
from .experts import Expert
from .progress import progress_bar


logger = logging.get_logger(__name__)

CACHE_VERSION = 1
MAX_DENSE_LABELS = 256


@dataclass(frozen=True)
class ExpertPredictions:
    """One expert's answers to n images.

    Attributes:
        scores: float32 (n, C) logits; or, above 256 labels, (n, 20) largest log-probabilities.
        labels: int64 (n, 20), the labels that these belong to; None where `scores` has them all.
        remainder: float32 (n,), log of the probability of all other labels together; None as above.
        features: float32 (n, F), or None where they were not asked for.
        num_labels: C.
    """

    scores: torch.Tensor
    labels: torch.Tensor | None
    remainder: torch.Tensor | None
    features: torch.Tensor | None
    num_labels: int

    @property
    def is_approximate(self) -> bool:
        return self.labels is not None

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits (b, C) of some images; what was cut off above 256 labels is spread evenly over the other labels."""
        if self.labels is None:
            return self.scores[rows]
        others = self.remainder[rows] - math.log(self.num_labels - self.scores.shape[1])
        dense = others.unsqueeze(1).repeat(1, self.num_labels)
        return dense.scatter_(1, self.labels[rows], self.scores[rows])

    def answers(self) -> torch.Tensor:
        """int64 (n,), the label that the expert answers with."""
        best = self.scores.argmax(1)
        return best if self.labels is None else self.labels.gather(1, best.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class Predictions:
    """What a pool says about n labelled images.

    Attributes:
        experts: one for each expert of the pool.
        labels: int64 (n,).
        gmacs: cost of one image, by expert.
        rows: int64 (m,), the images that this object speaks of.
    """

    experts: tuple[ExpertPredictions, ...]
    labels: torch.Tensor
    gmacs: tuple[float, ...]
    rows: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_labels(self) -> int:
        return self.experts[0].num_labels

    @property
    def is_approximate(self) -> bool:
        """Whether scores are cut: what mixes them is then approximate."""
        return any(expert.is_approximate for expert in self.experts)

    @property
    def targets(self) -> torch.Tensor:
        """int64 (m,)."""
        return self.labels[self.rows]

    def subset(self, rows: torch.Tensor) -> Predictions:
        """The same of some of these images; `rows` counts within this object."""
        return replace(self, rows=self.rows[rows])

    def correct(self) -> torch.Tensor:
        """bool (m, N): whether each expert is right."""
        return torch.stack([expert.answers()[self.rows] for expert in self.experts], 1) == self.targets.unsqueeze(1)

    def answer(self, expert: int, rows: torch.Tensor) -> Answer:
        """What `dispatcher.route` asks for: logits and features of some images, without running the expert."""
        source, rows = self.experts[expert], self.rows[rows]
        return source.logits(rows), None if source.features is None else source.features[rows]


def predict(
    pool: Sequence[Expert],
    images: LabelledImages,
    accelerator: Accelerator,
    *,
    features_of: Sequence[int] = (),
    batch_size: int = 64,
    num_workers: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> Predictions:
    """Run every expert over the images, or take what the cache has.

    Args:
        pool: experts by rising cost.
        images: labelled images; each process decodes and classifies its share, in batches cut by row.
        accelerator: device and processes.
        features_of: experts whose pooled features are kept, too.
        batch_size, num_workers: images that an expert receives at once; processes that decode.
        cache_dir: default `$HF_HOME/pertinence`.

    Raises:
        PertinenceError: an image that cannot be decoded, or an expert that answers with NaN.
    """
    root = Path(cache_dir or Path(HF_HOME) / "pertinence") / "predictions"
    experts = []
    for index, expert in enumerate(pool):
        with_features = index in features_of
        identity = _identity(expert, images)
        folder = root / f"{expert.entry['name'].replace('/', '--')}-{_digest(identity)[:16]}"
        tensors = _read(folder, identity, with_features)
        if accelerator.num_processes > 1:
            # All processes must agree on who has to run: one whose disk has no copy makes everybody run.
            found = gather_object([tensors is not None])
            tensors = tensors if all(found) else None
        if tensors is None:
            tensors = _run(expert, images, accelerator, with_features, batch_size, num_workers)
            if accelerator.is_local_main_process:
                _write(folder, identity, tensors)
            accelerator.wait_for_everyone()
        experts.append(
            ExpertPredictions(
                tensors["scores"],
                tensors.get("labels"),
                tensors.get("remainder"),
                tensors.get("features") if with_features else None,
                len(expert.labels),
            )
        )
    gmacs = tuple(expert.entry["gmacs"] for expert in pool)
    return Predictions(tuple(experts), images.labels, gmacs, torch.arange(len(images)))


def _run(
    expert: Expert,
    images: LabelledImages,
    accelerator: Accelerator,
    with_features: bool,
    batch_size: int,
    workers: int,
) -> dict[str, torch.Tensor]:
    batches = [list(range(start, min(start + batch_size, len(images)))) for start in range(0, len(images), batch_size)]
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    loader = torch.utils.data.DataLoader(
        images, batch_sampler=[batches[i] for i in mine], num_workers=workers, collate_fn=_no_collate
    )
    home = expert.device
    expert.to(accelerator.device)
    results = []
    name = expert.entry["name"]
    count = sum(len(batches[i]) for i in mine)
    with progress_bar(count, f"Predictions of {name}", "image", accelerator.is_local_main_process) as bar:
        for index, batch in zip(mine, loader, strict=True):
            logits, features = expert(raise_or(batch))
            kept = _compress(logits.cpu())
            if with_features:
                kept["features"] = features.cpu()
            results.append((index, kept))
            bar.update(len(batch))
    expert.to(home)
    if accelerator.num_processes > 1:
        results = sorted(gather_object(results), key=lambda item: item[0])
    return {key: torch.cat([kept[key] for _, kept in results]) for key in results[0][1]}


def _no_collate(batch: list[Any]) -> list[Any]:
    return batch


def _compress(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    if logits.shape[1] <= MAX_DENSE_LABELS:
        return {"scores": logits}
    log_probs = logits.log_softmax(1)
    top, labels = log_probs.topk(TOP_LABELS)
    rest = log_probs.scatter(1, labels, -torch.inf).logsumexp(1)
    return {"scores": top, "labels": labels, "remainder": rest}


def _identity(expert: Expert, images: LabelledImages) -> dict[str, Any]:
    """Everything that an expert's answers depend on."""
    import timm

    return {
        "cache_version": CACHE_VERSION,
        "expert": {key: expert.entry[key] for key in ("revision", "transform", "label_map")},
        "preprocessing": expert.preprocess.mode,
        "dtype": str(expert.model.dtype),
        "images": images.fingerprint,
        "count": len(images),
        "versions": {module.__name__: module.__version__ for module in (torch, torchvision, transformers, timm, PIL)},
    }


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(folder: Path, identity: dict[str, Any], with_features: bool) -> dict[str, torch.Tensor] | None:
    """Tensors of a store (memory-mapped), or None where it is absent, stale, damaged, or lacks the features."""
    if not folder.is_dir():
        return None
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
        path = folder / "predictions.safetensors"
        if metadata["identity"] != identity or metadata["sha256"] != _hash_file(path):
            raise ValueError("its fingerprint does not match")
        with safe_open(path, framework="pt") as store:
            tensors = {key: store.get_tensor(key) for key in store.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning(f"The predictions in {folder} are stale or damaged ({error}): computing them again.")
        return None
    return tensors if "features" in tensors or not with_features else None


def _write(folder: Path, identity: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write a store beside its place, then move it there: a store is whole or absent."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=folder.parent))
        try:
            path = temporary / "predictions.safetensors"
            save_file(tensors, path)
            metadata = {"fingerprint": _digest(identity), "identity": identity, "sha256": _hash_file(path)}
            (temporary / "metadata.json").write_text(json.dumps(metadata, indent=2))
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise PertinenceError(
            f"predictions cannot be kept in {folder.parent} ({error.strerror}): choose another --cache-dir"
        ) from error
