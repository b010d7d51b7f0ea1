"""`--variants auto`: for each expert the variant that loses the least accuracy for the cost that it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging

from ..data.dataset import LabelledImages, raise_or
from ..data.splits import sample_rows
from ..evaluation.intervals import paired_difference
from ..experts.backends.base import BACKENDS, Calibration, calibration_images
from ..experts.expert import Expert, measured_expert
from ..experts.reference import variant_suffix
from ..experts.variants import SIZE_MODES, possible_sizes
from ..predictions.predict import predict
from ..predictions.predictions import Predictions
from ..routing.costs import COSTS
from ..runtime.entry import GRAPH_BACKENDS, TORCH
from ..runtime.transform import Transform
from ..utils.errors import PertinenceError
from ..utils.progress import progress_bar
from .arguments import SearchArguments


logger = logging.get_logger(__name__)

TRIED_IMAGES = 2000
"""Number of search images that variants are tried on; a choice among a few coarse steps needs no more."""


@dataclass(frozen=True)
class Trial:
    """The measured trade-off of a variant.

    Attributes:
        variant: the variant of an expert.
        loss: accuracy of the original expert minus accuracy of the variant.
        error: standard error of the loss.
        saving: saved share of the original expert's cost.
    """

    variant: Any
    loss: float
    error: float
    saving: float

    @classmethod
    def of(cls, variant: Any, right: torch.Tensor, whole_right: torch.Tensor, saving: float) -> Trial:
        """Compare which of the same images the variant and the original expert get right, bool (n,)."""
        wins, losses = int((whole_right & ~right).sum()), int((right & ~whole_right).sum())
        return cls(variant, *paired_difference(wins, losses, len(right)), saving)

    @property
    def price(self) -> float:
        """Accuracy lost per unit of saving, that is, for a saving of all cost."""
        return max(self.loss, 0.0) / self.saving

    def costs_more(self, limit: float) -> bool:
        """Whether its loss per saving exceeds `limit` by more than two standard errors."""
        return self.loss - 2 * self.error >= limit * self.saving


def propose_variants(
    pool: Sequence[Expert],
    images: LabelledImages,
    search: Predictions,
    accelerator: Accelerator,
    arguments: SearchArguments,
    measure: Callable[[Expert], Expert],
) -> dict[str, Expert]:
    """Propose variants of some experts, by name of the expert.

    Smaller inputs are tried from large to small, by cropping and by resizing, as long as the loss of accuracy per
    saved cost is not clearly above that of the pool itself: the difference of accuracy between its largest and its
    cheapest expert per difference of cost. For each expert the variant with the least loss per saving is kept.
    Backends are tried if they offer themselves: 8-bit layers only if the cost is time or memory, as they need as many
    operations.

    Args:
        pool: experts by rising cost.
        images: images of the split that `search` covers a part of.
        search: predictions of the pool for the search images.
        accelerator: device and processes.
        arguments: settings of the search.
        measure: returns the expert with the minimised cost in its entry.
    """
    sample = search.subset(sample_rows(len(search), TRIED_IMAGES))
    tried = images.select(sample.rows)
    options = {key: getattr(arguments, key) for key in ("batch_size", "num_workers", "cache_dir")}
    right = sample.correct()
    limit = price_of_pool(right, search.costs.of_experts)

    def attempt(index: int, how: dict[str, Any]) -> Trial | None:
        expert = pool[index]
        count = calibration_images(BACKENDS.get(how.get("backend", expert.entry.backend)))
        calibration = Calibration(
            raise_or([tried[row] for row in sample_rows(len(tried), count).tolist()]) if count else (),
            expert.preprocessing,
        )
        with accelerator.main_process_first():  # which may write a file that the others read
            try:
                variant = _variant(expert, how, calibration)
            except PertinenceError as error:
                logger.warning(f"Not tried as a variant: {error}.")
                return None
        unit, variant = search.costs.objective, measure(variant)
        saving = 1 - variant.entry.costs[unit] / expert.entry.costs[unit]
        if saving <= 0:
            return None
        answers = predict([variant], tried, accelerator, **options).experts[0].top_labels()
        return Trial.of(variant, answers == sample.targets, right[:, index], saving)

    cost_depends = COSTS.get(search.costs.objective).depends_on_backend
    found, there = {}, {_identity(expert) for expert in pool}
    with progress_bar(len(pool) - 1, "Variants", "expert", accelerator.is_main_process) as bar:
        for index, expert in enumerate(pool[:-1]):  # no cascade starts with the largest
            ladders = _ladders(expert, cost_depends, accelerator.device)
            best = best_variant(ladders, partial(attempt, index), limit)
            if best is not None and _identity(best.variant) not in there:
                found[expert.entry.name] = best.variant
            bar.update(1)
    return found


def price_of_pool(right: torch.Tensor, costs: Sequence[float]) -> float:
    """Difference of accuracy between the largest and the cheapest expert, relative to the saved share of the largest
    expert's cost; 0 if both cost the same.

    Args:
        right: bool (n, N), whether each expert is right.
        costs: cost of one image by expert, rising.
    """
    if costs[0] == costs[-1]:
        return 0.0
    accuracy = right.double().mean(0)
    return (accuracy[-1] - accuracy[0]).item() / (1 - costs[0] / costs[-1])


def best_variant(
    ladders: Iterable[Iterable[Any]], attempt: Callable[[Any], Trial | None], limit: float
) -> Trial | None:
    """The variant with the least loss per saving, among those that do not clearly exceed `limit`.

    Args:
        ladders: kinds of variants, each from the mildest on; a kind is abandoned at the first that loses too much.
        attempt: measures a variant; None if it saves nothing.
        limit: see `price_of_pool`.
    """
    kept = []
    for ladder in ladders:
        for how in ladder:
            trial = attempt(how)
            if trial is None or trial.costs_more(limit):
                break
            kept.append(trial)
    return min(kept, key=lambda trial: (trial.price, -trial.saving), default=None)


def _ladders(expert: Expert, cost_depends: bool, device: torch.device) -> Iterator[Iterator[dict[str, Any]]]:
    """Kinds of variants of an expert, each from the mildest on; an expert that is a variant itself has none."""
    if expert.entry.transform.is_smaller or expert.entry.backend not in (TORCH, *GRAPH_BACKENDS):
        return
    sizes = possible_sizes(expert.checkpoint)
    for by in SIZE_MODES:
        yield ({"image_size": size, "image_size_by": by} for size in sizes)
    for name in BACKENDS.names:
        if BACKENDS.get(name).is_offered(expert.checkpoint, cost_depends, device):
            yield iter([{"backend": name}])


def _identity(expert: Expert) -> tuple[str, Transform, str]:
    """Key that identifies an expert of a pool, as the user may have added the same variant."""
    return expert.entry.revision, expert.entry.transform, expert.entry.backend


def _variant(expert: Expert, how: dict[str, Any], calibration: Calibration) -> Expert:
    name = expert.entry.name + variant_suffix(**{"image_size": None, "image_size_by": "crop", "backend": TORCH, **how})
    how = {"backend": expert.entry.backend, **how}
    entry = expert.entry.replace(name=name)
    return measured_expert(expert.checkpoint, entry, expert.preprocessing, calibration=calibration, **how)
