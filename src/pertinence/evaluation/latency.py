"""Measured latency of operating points and of experts alone, by device and batch size, stored with their figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.arguments import DataArguments
from ..data.dataset import raise_or
from ..data.loading import load_images
from ..data.splits import sample_rows
from ..experts.base import ExpertLike
from ..hub.layout import update_config
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..routing.front import Front, OperatingPoint
from ..routing.metrics import Latency, format_table
from ..routing.names import FASTEST, MOST_ACCURATE
from ..runtime.entry import CONFIG, TORCH
from ..utils.distributed import device_name, make_accelerator
from ..utils.errors import PertinenceError
from ..utils.names import shortened
from ..utils.progress import progress_bar
from ..utils.tables import Tabular
from .arguments import BenchmarkArguments
from .evaluate import open_model


TIMED_IMAGES = 128
"""Least number of images per round, even with smaller batches, as images are routed differently."""
ALL = "all"
NAME_WIDTH = 28

Call = Callable[[Sequence[torch.Tensor]], Any]
"""Answers a batch of images."""


@dataclass(frozen=True)
class Benchmark(Tabular):
    """What was timed on one device.

    Attributes:
        front: the whole front; the points that were timed have their `latency`.
        timed: names of these points.
        experts: what was measured of each expert alone, by its name.
        reference: name of the expert that speed-ups refer to.
    """

    front: Front
    timed: tuple[str, ...]
    experts: Mapping[str, tuple[Latency, ...]]
    reference: str

    @property
    def measured(self) -> dict[str, tuple[Latency, ...]]:
        """What was measured now, by name: of points by rising cost, then of experts."""
        settings = {(one.device, one.batch_size) for one in self.experts[self.reference]}
        points = {
            point.name: tuple(one for one in point.latency if (one.device, one.batch_size) in settings)
            for point in self.front
            if point.name in self.timed
        }
        return points | {f"{name} alone": several for name, several in self.experts.items()}

    def rows(self) -> list[dict[str, Any]]:
        """One row for each batch size of each point and expert; `speed_up` is against the reference expert."""
        alone = {one.batch_size: one.milliseconds for one in self.experts[self.reference]}
        return [
            {"name": name, **one.to_dict(), "speed_up": alone[one.batch_size] / one.milliseconds}
            for size in sorted(alone)
            for name, several in self.measured.items()
            for one in several
            if one.batch_size == size
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"reference": self.reference, "latency": self.rows()}

    def __str__(self) -> str:
        header = ["", "batch", "ms an image", "quartiles", "ms a call: p50", "p95", "speed-up"]
        cells = [
            [
                shortened(row["name"], NAME_WIDTH),
                str(row["batch_size"]),
                f"{row['milliseconds']:.4g}",
                f"{row['low']:.3g} .. {row['high']:.3g}",
                f"{row['p50']:.3g}",
                f"{row['p95']:.3g}",
                f"{row['speed_up']:.2f}",
            ]
            for row in self.rows()
        ]
        some = self.experts[self.reference][0]
        threads = f", {some.threads} thread{'s' * (some.threads > 1)}" if some.threads else ""
        note = f"On {some.device}{threads}, {some.images} images; speed-up against {self.reference} alone."
        if some.images != "given":
            note += "\nSynthetic images go other ways than yours: give --dataset (and --split) for figures that hold."
        return f"{format_table(header, cells, expendable=(3, 5))}\n{note}"


def benchmark(
    model_path: str | os.PathLike,
    data: DataArguments,
    args: BenchmarkArguments,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
) -> Benchmark:
    """Time operating points of a saved model, and each of its experts alone.

    Args:
        model_path: folder or Hub id.
        data: images to time on, of which evenly spaced rows are used; without a data set images are synthetic.
        args: device, dtype, batch sizes, rounds, points.
        expert_paths: new folders of local experts that have moved, by expert name.
        revision: branch, tag or commit on the Hub.

    Raises:
        PertinenceError: there is no model, no such point, or no images.
    """
    device = make_accelerator(args.device).device
    model = open_model(model_path, args, expert_paths, revision).to(device)
    names = args.operating_point or [model.front.find(model.config.operating_point).name, FASTEST, MOST_ACCURATE]
    chosen = list(model.front) if ALL in names else map(model.front.find, names)
    timed = list({point.name: point for point in chosen}.values())
    images, kind = _images(model, data, args)
    calls: list[Call] = [*(partial(model, operating_point=point.name) for point in timed), *model.pool]
    with progress_bar(args.rounds * len(calls) * len(args.batch_size), "Latency", "round") as bar:
        seconds = time_calls(calls, images, args.batch_size, args.rounds, device, bar.update)
    threads = torch.get_num_threads() if device.type == "cpu" else None
    where = ", ".join([device_name(device), *_how(model)])
    found = [
        tuple(_summarise(rounds, size, where, kind, threads) for size, rounds in by_size.items())
        for by_size in seconds
    ]
    measured = {point.name: latency for point, latency in zip(timed, found[: len(timed)], strict=True)}
    points = [point.replaced_latency(measured.get(point.name, ())) for point in model.front]
    experts = dict(zip(model.front.expert_names, found[len(timed) :], strict=True))
    reference = model.config.expert_names[model.config.reference_index]
    return Benchmark(Front(points, model.front.expert_names), tuple(measured), experts, reference)


def _how(model: PertinenceForImageClassification) -> list[str]:
    """What runs the experts of a model, beside a device: nothing where all run in torch as they are."""
    experts: list[ExpertLike] = [*model.pool, *filter(None, [model.stem])]
    backends = sorted({TORCH if one.entry.is_of_torch else one.entry.backend for one in experts})
    providers = sorted({one.provider for one in experts if one.provider})
    is_folded = any(one.folds_batch_norms for one in experts)
    shown = [] if backends == [TORCH] else [" and ".join(backends)]
    return [*shown, *providers, *(["folded"] if is_folded else [])]


def _images(
    model: PertinenceForImageClassification, data: DataArguments, args: BenchmarkArguments
) -> tuple[list[torch.Tensor], str]:
    """Images to time on, and whether they are "given" or "synthetic"."""
    count = max(TIMED_IMAGES, *args.batch_size)
    if data.dataset is None:
        return synthetic_images(count, model.pool[-1].entry.transform.size), "synthetic"
    source = load_images(data, args.token, needs_labels=False)
    given = [source[row] for row in sample_rows(len(source), count).tolist()]
    if args.on_bad_image == "skip":
        given = [image for image in given if not isinstance(image, PertinenceError)] or given
    return list(islice(cycle(raise_or(given)), count)), "given"  # all batches must be full


def time_calls(
    calls: Sequence[Call],
    images: Sequence[torch.Tensor],
    batch_sizes: Sequence[int],
    rounds: int,
    device: torch.device,
    on_round: Callable[[], object] = lambda: None,
) -> list[dict[int, np.ndarray]]:
    """Measure seconds of each call, by batch size: float64 (rounds, calls).

    All take turns within a round, so that a machine that slows down slows all of them.
    """
    seconds: list[dict[int, np.ndarray]] = [{} for _ in calls]
    for size in batch_sizes:
        used = images[: max(size, TIMED_IMAGES // size * size)]
        batches = [used[start : start + size] for start in range(0, len(used), size)]
        for call, by_size in zip(calls, seconds, strict=True):
            call(batches[0])  # the first call makes buffers and kernels
            by_size[size] = np.empty((rounds, len(batches)))
        for turn in range(rounds):
            for call, by_size in zip(calls, seconds, strict=True):
                for index, batch in enumerate(batches):
                    _wait_for(device)
                    start = time.perf_counter()
                    call(batch)
                    _wait_for(device)
                    by_size[size][turn, index] = time.perf_counter() - start
                on_round()
    return seconds


def synthetic_images(count: int, size: tuple[int, int]) -> list[torch.Tensor]:
    """Smooth coloured patterns, uint8 (3, H, W), the same on every call."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return list((torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8))


def store_latency(folder: str | os.PathLike, points: Sequence[OperatingPoint]) -> None:
    """Store measured latencies in the config.json of a saved model; raises `PertinenceError` unless it is a folder."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise PertinenceError(f"{folder} is not a local folder, so nothing can be stored there: download it first")
    update_config(path, {"front": [point.to_dict() for point in points]})


def _summarise(seconds: np.ndarray, batch_size: int, device: str, images: str, threads: int | None) -> Latency:
    """The median and the quartiles of rounds as milliseconds an image, and quantiles of calls."""
    median, low, high = (1000 * np.quantile(seconds.mean(1) / batch_size, [0.5, 0.25, 0.75])).tolist()
    p50, p95 = (1000 * np.quantile(seconds, [0.5, 0.95])).tolist()
    return Latency(device, batch_size, median, low, high, images, p50, p95, threads)


def _wait_for(device: torch.device) -> None:
    """Wait until an accelerator has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
