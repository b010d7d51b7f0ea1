"""Measured latency of operating points by device and batch size, stored with their figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.arguments import DataArguments
from ..data.dataset import raise_or
from ..data.loading import load_images
from ..hub.layout import update_config
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..routing.front import OperatingPoint
from ..routing.metrics import Latency, format_table
from ..utils.distributed import device_name, make_accelerator
from ..utils.errors import PertinenceError
from ..utils.progress import progress_bar
from .arguments import BenchmarkArguments
from .evaluate import open_model


TIMED_IMAGES = 128
"""Least number of images per round, even with smaller batches, as images are routed differently."""


def benchmark(
    model_path: str | os.PathLike,
    data: DataArguments,
    args: BenchmarkArguments,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
) -> list[OperatingPoint]:
    """Time the operating points of a saved model.

    Args:
        model_path: folder or Hub id.
        data: images to time on, of which evenly spaced rows are used; without a data set images are synthetic.
        args: device, dtype, batch sizes, rounds.
        expert_paths: new folders of local experts that have moved, by expert name.
        revision: branch, tag or commit on the Hub.

    Returns:
        The points of the front, the timed ones with their `latency`.

    Raises:
        PertinenceError: there is no model, or no images.
    """
    device = make_accelerator(args.device).device
    model = open_model(model_path, args, expert_paths, revision).to(device)
    timed = list(model.front) if args.operating_point is None else [model.front.find(args.operating_point)]
    count = max(TIMED_IMAGES, *args.batch_size)
    if data.dataset is None:
        images, kind = synthetic_images(count, model.pool[-1].entry.transform.size), "synthetic"
    else:
        source = load_images(data, args.token, needs_labels=False)
        rows = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
        given = [source[row] for row in rows]
        if args.on_bad_image == "skip":
            given = [image for image in given if not isinstance(image, PertinenceError)] or given
        images, kind = raise_or(given), "given"
    with progress_bar(args.rounds * len(timed) * len(args.batch_size), "Latency", "round") as bar:
        seconds = time_points(model, timed, images, args.batch_size, args.rounds, bar.update)
    name = device_name(device)
    measured = {
        point.name: [_summarise(name, size, rounds, kind) for size, rounds in by_size.items()]
        for point, by_size in zip(timed, seconds, strict=True)
    }
    return [point.replaced_latency(measured.get(point.name, ())) for point in model.front]


def time_points(
    model: PertinenceForImageClassification,
    points: Sequence[OperatingPoint],
    images: Sequence[torch.Tensor],
    batch_sizes: Sequence[int],
    rounds: int,
    on_round: Callable[[], object] = lambda: None,
) -> list[dict[int, list[float]]]:
    """Measure seconds per image at each point, by batch size, for each round.

    Points take turns within a round, so that a machine that slows down slows all of them.
    """
    seconds: list[dict[int, list[float]]] = [{size: [] for size in batch_sizes} for _ in points]
    for size in batch_sizes:
        used = images[: max(size, TIMED_IMAGES // size * size)]
        batches = [used[start : start + size] for start in range(0, len(used), size)]
        for point in points:
            model(batches[0], operating_point=point.name)  # the first call makes buffers and kernels
        for _ in range(rounds):
            for point, by_size in zip(points, seconds, strict=True):
                _wait_for(model.device)
                start = time.perf_counter()
                for batch in batches:
                    model(batch, operating_point=point.name)
                _wait_for(model.device)
                by_size[size].append((time.perf_counter() - start) / len(used))
                on_round()
    return seconds


def synthetic_images(count: int, size: tuple[int, int]) -> list[torch.Tensor]:
    """Smooth coloured patterns, uint8 (3, H, W), the same on every call."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return list((torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8))


def store_latency(folder: str | os.PathLike, points: Sequence[OperatingPoint]) -> None:
    """Store measured latencies in the config.json of a saved model; raises `PertinenceError` unless it is a folder."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise PertinenceError(f"{folder} is not a local folder, so nothing can be stored there: download it first")
    update_config(path, {"front": [point.to_dict() for point in points]})


def latency_table(points: Sequence[OperatingPoint]) -> str:
    """A table of the milliseconds per image at each point, with the quartiles of the rounds."""
    settings = list(dict.fromkeys((entry.device, entry.batch_size) for point in points for entry in point.latency))
    header = ["operating point", "GMACs", *(f"{device}, batch {size}" for device, size in settings)]
    rows = []
    for point in points:
        cells = {
            (entry.device, entry.batch_size): f"{entry.milliseconds:.4g} ms [{entry.low:.4g} .. {entry.high:.4g}]"
            for entry in point.latency
        }
        gmacs = f"{point.select.gmacs:.4g}" if point.select else ""
        rows.append([point.name, gmacs, *(cells.get(setting, "") for setting in settings)])
    return format_table(header, rows)


def _summarise(device: str, batch_size: int, rounds: Sequence[float], images: str) -> Latency:
    """The median and the quartiles of rounds, in seconds, as milliseconds."""
    median, low, high = (1000 * np.quantile(rounds, [0.5, 0.25, 0.75])).tolist()
    return Latency(device, batch_size, median, low, high, images)


def _wait_for(device: torch.device) -> None:
    """Wait until an accelerator has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
