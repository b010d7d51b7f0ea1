"""`--variants auto`: for each expert the cheaper variant that loses the least accuracy for what it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from ..data.dataset import LabelledImages
from ..evaluation.intervals import paired_difference
from ..experts.backends.base import BACKENDS
from ..experts.entry import TORCH
from ..experts.expert import Expert, measured_expert
from ..experts.reference import variant_suffix
from ..experts.transforms import Transform
from ..experts.variants import SIZE_MODES, possible_sizes
from ..predictions.predict import predict
from ..predictions.predictions import Predictions
from ..routing.costs import COSTS
from ..utils.progress import progress_bar
from .arguments import SearchArguments


TRIED_IMAGES = 2000
"""Search images that variants are tried on; what is chosen among few coarse steps needs no more."""


@dataclass(frozen=True)
class Trial:
    """What a variant was found to be.

    Attributes:
        variant: the expert that was tried.
        loss: share of images that the whole expert gets right and the variant does not, less the reverse.
        error: standard error of the loss.
        saving: share of the whole expert's cost.
    """

    variant: Any
    loss: float
    error: float
    saving: float

    @classmethod
    def of(cls, variant: Any, right: torch.Tensor, whole_right: torch.Tensor, saving: float) -> Trial:
        """From which of the same images the variant and the whole expert get right, bool (n,)."""
        wins, losses = (whole_right & ~right).sum().item(), (right & ~whole_right).sum().item()
        return cls(variant, *paired_difference(wins, losses, len(right)), saving)

    @property
    def price(self) -> float:
        """Accuracy that is lost for all of the cost."""
        return max(self.loss, 0.0) / self.saving

    def is_dearer(self, limit: float) -> bool:
        """Whether it clearly loses more for its saving than `limit`: by two standard errors."""
        return self.loss - 2 * self.error >= limit * self.saving


def propose_variants(
    pool: Sequence[Expert],
    images: LabelledImages,
    search: Predictions,
    accelerator: Accelerator,
    arguments: SearchArguments,
    measure: Callable[[Expert], Expert],
) -> dict[str, Expert]:
    """For some experts a variant, by the expert's name.

    Smaller images are tried from large to small, by cutting and by resizing, as long as the accuracy that is lost for
    the cost that is saved is not clearly above what the pool itself asks: the accuracy between its largest and its
    cheapest expert for the cost between them. Of each expert the variant that loses the least for its saving is kept.
    Other backends are tried where they offer it: 8-bit layers where cost is time or memory, as they take as many
    operations.

    Args:
        pool: experts by rising cost.
        images: that `search` speaks of some of.
        search: what the pool says about the search images.
        accelerator: device and processes.
        arguments: settings of the search.
        measure: gives the expert with the cost that is minimised in its entry.
    """
    spaced = torch.linspace(0, len(search) - 1, min(TRIED_IMAGES, len(search)), dtype=torch.float64).round().long()
    sample = search.subset(spaced)
    tried = images.select(sample.rows)
    options = {key: getattr(arguments, key) for key in ("batch_size", "num_workers", "cache_dir")}
    right = sample.correct()
    limit = price_of_pool(right, search.costs.of_experts)

    def attempt(index: int, how: dict[str, Any]) -> Trial | None:
        expert = pool[index]
        variant = _variant(expert, how)
        unit, variant = search.costs.objective, measure(variant)
        saving = 1 - variant.entry.costs[unit] / expert.entry.costs[unit]
        if saving <= 0:
            return None
        answers = predict([variant], tried, accelerator, **options).experts[0].top_labels()
        return Trial.of(variant, answers == sample.targets, right[:, index], saving)

    cost_depends = COSTS.get(search.costs.objective).depends_on_backend
    found, there = {}, {_identity(expert) for expert in pool}
    with progress_bar(len(pool) - 1, "Variants", "expert", accelerator.is_main_process) as bar:
        for index, expert in enumerate(pool[:-1]):  # the largest starts no chain
            ladders = _ladders(expert, cost_depends, accelerator.device)
            best = best_variant(ladders, partial(attempt, index), limit)
            if best is not None and _identity(best.variant) not in there:
                found[expert.entry.name] = best.variant
            bar.update(1)
    return found


def price_of_pool(right: torch.Tensor, costs: Sequence[float]) -> float:
    """Accuracy between the largest and the cheapest expert, for all of the largest's cost; 0 where both cost the same.

    Args:
        right: bool (n, N), whether each expert is right.
        costs: of one image, by expert, rising.
    """
    if costs[0] == costs[-1]:
        return 0.0
    accuracy = right.double().mean(0)
    return (accuracy[-1] - accuracy[0]).item() / (1 - costs[0] / costs[-1])


def best_variant(
    ladders: Iterable[Iterable[Any]], attempt: Callable[[Any], Trial | None], limit: float
) -> Trial | None:
    """The variant that loses the least for its saving, of those that do not clearly lose more than `limit`.

    Args:
        ladders: kinds of variants, each from the mildest on; a kind is left at the first that loses too much.
        attempt: what a variant is found to be; None where it saves nothing.
        limit: see `price_of_pool`.
    """
    kept = []
    for ladder in ladders:
        for how in ladder:
            trial = attempt(how)
            if trial is None or trial.is_dearer(limit):
                break
            kept.append(trial)
    return min(kept, key=lambda trial: (trial.price, -trial.saving), default=None)


def _ladders(expert: Expert, cost_depends: bool, device: torch.device) -> Iterator[Iterator[dict[str, Any]]]:
    """Kinds of variants of an expert, each from the mildest on; none of one that is a variant already."""
    if expert.entry.transform.is_smaller or expert.entry.backend != TORCH:
        return
    sizes = possible_sizes(expert.checkpoint)
    for by in SIZE_MODES:
        yield ({"image_size": size, "image_size_by": by} for size in sizes)
    for name in BACKENDS.names:
        if name != TORCH and BACKENDS.find(name).is_offered(expert.checkpoint, cost_depends, device):
            yield iter([{"backend": name}])


def _identity(expert: Expert) -> tuple[str, Transform, str]:
    """What tells experts of a pool apart: a variant may be there already, made by hand."""
    return expert.entry.revision, expert.entry.transform, expert.entry.backend


def _variant(expert: Expert, how: dict[str, Any]) -> Expert:
    how = {"image_size": None, "image_size_by": "crop", "backend": TORCH, **how}
    entry = expert.entry.replace(name=expert.entry.name + variant_suffix(**how))
    return measured_expert(expert.checkpoint, entry, expert.preprocessing, **how)
