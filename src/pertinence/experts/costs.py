"""Measuring the cost of one image, such as its latency; its operations are counted in `operations`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from ..routing.costs import Cost
from ..utils.errors import PertinenceError, shown
from ..utils.validation import is_number
from .base import ExpertLike


TURNS, TURN_SECONDS = 9, 0.1


@dataclass(frozen=True)
class Measurement:
    """How a cost is measured.

    Attributes:
        image: uint8 (3, H, W), repeated to make batches.
        batch_size: images per batch.
        device: device that experts run on.
    """

    image: torch.Tensor
    batch_size: int
    device: torch.device

    def milliseconds(self, experts: Sequence[ExpertLike]) -> list[float]:
        """Time of one image, for each expert alone: see `measure_latency`."""
        return measure_latency(experts, self.image, self.batch_size, self.device)


def measured_costs(cost: Cost, experts: Sequence[Any], how: Measurement) -> list[float]:
    """Measure experts; raises `PertinenceError` unless the cost gives a positive number for each."""
    values = [float(value) for value in cost.measure(experts, how)]
    if len(values) != len(experts) or not all(is_number(value, 0) and value > 0 for value in values):
        raise PertinenceError(
            f"cost {cost.name!r} measures {shown(values)}, expected a positive number for each of {len(experts)} "
            "experts: correct its `measure`, or choose another cost"
        )
    return values


def measure_latency(
    experts: Sequence[ExpertLike], image: torch.Tensor, batch_size: int, device: torch.device
) -> list[float]:
    """Measure the milliseconds per image of each expert on a device, preprocessing included: medians over rounds.

    The experts take turns, so that a machine that slows down slows all of them.

    Args:
        experts: modules that take a list of images.
        image: uint8 (3, H, W), repeated to make batches.
        batch_size: images per batch; the time of a batch is divided by it.
        device: device to run the experts on; afterwards they return to their own.
    """
    # Imported here: it loads torch's tools to compile extensions, which running a saved model must not need.
    from torch.utils.benchmark import Timer

    from ..utils.progress import progress_bar

    homes = [expert.device for expert in experts]
    timers = [
        Timer(
            "expert(images)",
            globals={"expert": expert.to(device), "images": [image] * batch_size},
            num_threads=torch.get_num_threads(),  # the default is one
        )
        for expert in experts
    ]
    seconds: list[list[float]] = [[] for _ in timers]
    with progress_bar(TURNS * len(timers), "Latency", "turn") as bar:
        for _ in range(TURNS):
            for timer, turns in zip(timers, seconds, strict=True):
                turns.append(timer.blocked_autorange(min_run_time=TURN_SECONDS).median)
                bar.update(1)
    for expert, home in zip(experts, homes, strict=True):
        expert.to(home)
    return [1000 * median(turns) / batch_size for turns in seconds]
