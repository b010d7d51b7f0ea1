"""Predictions: what every expert says about every image of a split, computed once and kept on disk."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub.constants import HF_HOME
from transformers.utils import logging

from ..data.dataset import LabelledImages, raise_or, unusable
from ..experts.base import ExpertLike
from ..routing.costs import GMACS, STEM, PoolCosts
from ..routing.metrics import ACCURACY, AGREEMENT
from ..routing.mixing import TOP_SCORES
from ..routing.policy import Outputs
from ..utils.errors import PertinenceError
from ..utils.io import check_writable
from ..utils.progress import progress_bar
from .store import ADVICE, identify, read_store, store_folder, write_store


logger = logging.get_logger(__name__)

MAX_DENSE_LABELS = 256
BAD = "unreadable"
"""The tensor of a store that marks images of which an expert could be given nothing."""
KEPT_SCORES = 20
"""Scores of each expert that are kept where there are more labels."""
CANDIDATES = 40
"""Labels of an image that a pool's answers then tell apart."""
ROWS_AT_ONCE = 8192
SHOWN_ROWS = 10


@dataclass(frozen=True)
class ExpertPredictions:
    """One expert's answers to n images.

    Attributes:
        scores: float32 (n, C) logits; or, above 256 labels, (n, k) largest log-probabilities.
        labels: int32 (n, k), the labels that these belong to; None where `scores` has them all.
        remainder: float32 (n,), log of the probability of all other labels together; None as above.
        features: float32 (n, F), or None where they were not asked for.
        num_labels: C.
    """

    scores: torch.Tensor
    labels: torch.Tensor | None
    remainder: torch.Tensor | None
    features: torch.Tensor | None
    num_labels: int

    @classmethod
    def keep(cls, logits: torch.Tensor, features: torch.Tensor | None = None) -> ExpertPredictions:
        """What is kept of logits (n, C): all of them up to 256 labels, else the largest."""
        return cls.from_tensors(
            compress(logits) | ({} if features is None else {"features": features}), logits.shape[1]
        )

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], num_labels: int) -> ExpertPredictions:
        """From the tensors of a store."""
        optional = (tensors.get(key) for key in ("labels", "remainder", "features"))
        return cls(tensors["scores"], *optional, num_labels)

    @property
    def is_cut(self) -> bool:
        return self.labels is not None

    def scores_of(self, wanted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of some labels of some images, and of one label beyond the largest.

        What was cut off is spread evenly over the labels beyond the largest.

        Args:
            wanted: int32 (b, K).
            rows: int64 (b,).

        Returns:
            float32 (b, K + 1).
        """
        scores, labels = self.scores[rows], self.labels[rows]
        other = (self.remainder[rows] - math.log(self.num_labels - scores.shape[1])).unsqueeze(1)
        found = other.repeat(1, wanted.shape[1] + 1)
        for score, label in zip(scores.split(1, 1), labels.split(1, 1), strict=True):
            found[:, :-1] = torch.where(wanted == label, score, found[:, :-1])
        return found

    def top_labels(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """int64 (m,), the label that the expert predicts, of some images or all."""
        best = self.scores[rows].argmax(1)
        return best if self.labels is None else self.labels[rows].gather(1, best.unsqueeze(1)).squeeze(1).long()


@dataclass(frozen=True)
class Predictions:
    """What a pool says about n images.

    Attributes:
        experts: one for each expert of the pool.
        labels: int64 (n,).
        costs: of the pool, and of the stem where there is one.
        rows: int64 (m,), the images that this object speaks of.
        candidates: int32 (n, K), the labels that any expert thinks likely; None where all scores are kept. Answers
            then have K + 1 columns, of which the last stands for each of the other labels (see `tail`).
        stem: what the separate stem says; None without one.
        measure: "accuracy", or "agreement" where the labels are the largest expert's answers.
        skipped: rows of the split that cannot be decoded, and of which nothing is said.
        digests: int64 (n,), the same for copies of one image; None where that is not known of every image.
    """

    experts: tuple[ExpertPredictions, ...]
    labels: torch.Tensor
    costs: PoolCosts
    rows: torch.Tensor
    candidates: torch.Tensor | None = None
    stem: ExpertPredictions | None = None
    measure: str = ACCURACY
    skipped: tuple[int, ...] = ()
    digests: torch.Tensor | None = None

    @classmethod
    def of_pool(cls, experts: Sequence[ExpertPredictions], labels: torch.Tensor, costs: PoolCosts) -> Predictions:
        """Predictions of all n images; labels int64 (n,)."""
        candidates = likely_labels(experts) if experts[0].is_cut else None
        return cls(tuple(experts), labels, costs, torch.arange(len(labels)), candidates)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_labels(self) -> int:
        """How many labels the experts have, C."""
        return self.experts[0].num_labels

    @property
    def tail(self) -> int:
        """How many labels the last column of an answer stands for."""
        return 1 if self.candidates is None else self.num_labels - self.candidates.shape[1]

    @property
    def num_experts(self) -> int:
        return len(self.experts)

    @property
    def targets(self) -> torch.Tensor:
        """int64 (m,), the label of each image."""
        return self.labels[self.rows]

    @property
    def target_columns(self) -> torch.Tensor:
        """int64 (m,), the column of an answer that is the image's label; the last where no expert thinks it likely."""
        if self.candidates is None:
            return self.targets
        match = self.candidates[self.rows] == self.targets.unsqueeze(1)
        return torch.where(match.any(1), match.int().argmax(1), match.shape[1])

    @property
    def copies(self) -> torch.Tensor | None:
        """int64 (m,), the same for copies of one image; None where that is not known."""
        return None if self.digests is None else self.digests[self.rows]

    def without_copies(self) -> Predictions:
        """The same, with one image of those that are copies of each other: only different images are independent."""
        if self.copies is None:
            return self
        return self.subset(torch.from_numpy(np.sort(np.unique(self.copies.numpy(), return_index=True)[1])))

    def describe_skipped(self, kind: str) -> str:
        """How many images of the split are skipped, and which."""
        rows = ", ".join(map(str, self.skipped[:SHOWN_ROWS])) + (", ..." if len(self.skipped) > SHOWN_ROWS else "")
        return f"{len(self.skipped)} of {len(self.labels)} {kind} cannot be decoded and are skipped (rows {rows})"

    def subset(self, rows: torch.Tensor) -> Predictions:
        """The same of some of these images; `rows` counts within this object."""
        return replace(self, rows=self.rows[rows])

    def agreeing(self) -> Predictions:
        """The same, where right means: as the largest expert answers."""
        return replace(self, labels=self.experts[-1].top_labels(), measure=AGREEMENT)

    def with_cost(self, unit: str, values: Sequence[float]) -> Predictions:
        """The same, where another unit is the objective; of every expert, and last of the stem where there is one."""
        experts, stem = values[: len(self.experts)], values[len(self.experts) :]
        return replace(self, costs=self.costs.with_unit(unit, experts, *stem))

    def correct(self) -> torch.Tensor:
        """bool (m, N): whether each expert is right."""
        return torch.stack([expert.top_labels(self.rows) for expert in self.experts], 1) == self.targets.unsqueeze(1)

    def outputs(self, expert: int, rows: torch.Tensor) -> Outputs:
        """What `policy.route` asks for: logits and features of some images, without running the expert."""
        rows = self.rows[rows]
        if expert == STEM:
            return None, self.stem.features[rows]
        source = self.experts[expert]
        scores = source.scores[rows] if not source.is_cut else source.scores_of(self.candidates[rows], rows)
        return scores, None if source.features is None else source.features[rows]


def likely_labels(experts: Sequence[ExpertPredictions]) -> torch.Tensor:
    """The labels that a pool thinks likely, image by image: every expert's first, then every expert's second, and so
    on up to the fifth; then those of most probability.

    Args:
        experts: whose scores are cut.

    Returns:
        int32 (n, K).
    """
    num_labels = experts[0].num_labels
    count = min(max(CANDIDATES, len(experts)), num_labels - 1)
    parts = []
    for rows in torch.arange(len(experts[0].scores)).split(ROWS_AT_ONCE):
        likely = torch.zeros(len(rows), num_labels)
        for expert in experts:
            labels = expert.labels[rows].long()
            likely.scatter_add_(1, labels, expert.scores[rows].exp())
            first = labels[:, :TOP_SCORES]
            bonus = 2.0 ** torch.arange(first.shape[1], 0, -1) * len(experts)
            likely.scatter_reduce_(1, first, bonus.expand(len(rows), -1), "amax")
        parts.append(likely.topk(count).indices.int())
    return torch.cat(parts)


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


def compress(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors that are kept of logits (n, C), see `ExpertPredictions`."""
    if logits.shape[1] <= MAX_DENSE_LABELS:
        return {"scores": logits}
    log_probs = logits.log_softmax(1)
    top, labels = log_probs.topk(KEPT_SCORES)
    rest = log_probs.scatter(1, labels, -torch.inf).logsumexp(1)
    return {"scores": top, "labels": labels.int(), "remainder": rest}
