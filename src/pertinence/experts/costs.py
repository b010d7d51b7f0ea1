"""Costs of one image: GMACs counted by fvcore (one fused multiply-add is one MAC), latency, or parameters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from ..routing.costs import Cost
from ..utils.errors import MALFORMED, PertinenceError, shown
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


def count_gmacs(model: nn.Module, size: tuple[int, int], options: dict[str, Any] | None = None) -> float:
    """GMACs of one image of (3, height, width) through an image classifier; preprocessing is not counted.

    Args:
        model: a transformers image classifier, or a backbone with the same interface; it is traced on its own device.
        size: (height, width), in pixels, of the model's input.
        options: further arguments of the model's call.

    Raises:
        PertinenceError: the model cannot be traced on such an image.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the tracing that fvcore is built on
        # Imported here, so that running a saved model does not need fvcore.
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(_LogitsOf(model, options or {}).eval(), image)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        try:
            return analysis.total() / 1e9
        except (RuntimeError, *MALFORMED) as error:  # a model that does not take images may raise any of these
            raise PertinenceError(
                f"the operations of {type(model).__name__} cannot be counted on a {size[0]}x{size[1]} image: {error}"
            ) from error


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


class _LogitsOf(nn.Module):
    def __init__(self, model: nn.Module, options: dict[str, Any]):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values, **self.options).logits


def _attention_macs(inputs, outputs) -> int:
    """MACs of Q K^T and of attention times V."""
    query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
    return math.prod(query[:-2]) * query[-2] * key[-2] * (query[-1] + value[-1])
