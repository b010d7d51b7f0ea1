"""How fast a searched model is in each backend, and how much of the saved operations the clock shows.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/backends.py cifar10 --batch-size 1 32 256
    OMP_NUM_THREADS=1 uv run python tests/benchmarks/backends.py imagenet --batch-size 1 16 --images 32

`cifar10`: the five ResNets of the zoo, searched on `validation`; `imagenet`: the seven mobile networks, searched on
one half of the validation images; predictions are those of the graphs. The searched and exported model is kept in
--folder, with the cache of predictions.

The default point runs in eager torch, with compiled networks (--compile), in ONNX Runtime, in OpenVINO (--openvino),
and in the runtime without torch, on decoded images; and so does the reference expert alone. All take turns; figures
are medians over turns [quartiles], of process CPU time (--wall: of the clock). It prints images per second, the ratio
to eager, and whether routes and answers are those of eager; then the saving in time against the reference expert in
the same backend, the most that routing could save (each expert alone, on the images that it was run on), and the
saving in operations.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from pools import MOBILE, ZOO
from runtime import spread, take_turns
from transformers.utils import logging

from pertinence import DispatcherSearch, PertinenceForImageClassification, SearchArguments
from pertinence.data.decoding import decode_image
from pertinence.evaluation.exports import export_onnx
from pertinence.predictions.arguments import RuntimeArguments
from pertinence.runtime.entry import CONFIG
from pertinence.runtime.model import load
from pertinence.utils.errors import PertinenceError


FOLDER = Path(tempfile.gettempdir()) / "pertinence-backends"
POOLS = {
    "cifar10": [ZOO / "cifar10" / f"resnet{depth}" for depth in (8, 20, 32, 44, 56)],
    "imagenet": [ZOO / "imagenet" / name for name in MOBILE[:7]],
}
POINTS, COMPARED = 20, 256


def images_of(pool: str, split: str) -> Dataset:
    """A split of the images of a pool; those of ImageNet have only one."""
    files = "imagenet-val/data/*.parquet" if pool == "imagenet" else f"cifar10/data/{split}-*.parquet"
    return load_dataset("parquet", data_files=str(ZOO / files), split="train")


def searched_model(pool: str, folder: Path) -> Path:
    """The folder of the searched model of a pool, with its exported experts; made if it is not there."""
    target = folder / pool
    if not (target / CONFIG).is_file():
        args = SearchArguments(
            cache_dir=str(folder / "cache"),
            trust_remote_code=True,
            report_fraction=0.5,
            front_size=POINTS,
            baselines=False,
            device="cpu",
            backend="onnx",
        )
        given = {"label_map": "by_name"} if pool == "imagenet" else {"report_dataset": images_of(pool, "test")}
        result = DispatcherSearch(POOLS[pool], images_of(pool, "validation"), args, **given).run()
        print(result.evaluation)
        result.save(target)
    if not (target / "experts").is_dir():
        arguments = RuntimeArguments(trust_remote_code=True, backend="torch")
        export_onnx(target, target, images_of(pool, "validation").select(range(COMPARED)), arguments)
    return target


@dataclass(frozen=True)
class Way:
    """One way to run a saved model.

    Attributes:
        route: gives logits and the experts that ran, as arrays, for a batch of decoded images.
        run_expert: runs an expert of the pool alone on such a batch.
        images: makes of uint8 tensors (3, H, W) what both take.
    """

    route: Callable[[list[Any]], tuple[np.ndarray, np.ndarray]]
    run_expert: Callable[[int, list[Any]], object]
    images: Callable[[Sequence[torch.Tensor]], list[Any]] = list


def in_full_package(folder: Path, compiled: bool = False, backend: str = "torch") -> Way:
    model = PertinenceForImageClassification.from_pretrained(folder, trust_remote_code=True, backend=backend)
    if compiled:
        model.compile_experts()

    def routed(batch: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        out = model(batch)
        return out.logits.numpy(), out.experts_run.numpy()

    return Way(routed, lambda index, batch: model.experts[index](batch))


def in_runtime(folder: Path) -> Way:
    model = load(folder, threads=torch.get_num_threads(), lazy=False)

    def routed(batch: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        out = model.route(batch)
        return out.logits, out.experts_run

    def as_arrays(images: Sequence[torch.Tensor]) -> list[np.ndarray]:
        return [image.permute(1, 2, 0).contiguous().numpy() for image in images]

    return Way(routed, lambda index, batch: model.experts[index].run(batch), as_arrays)


def opened_ways(folder: Path, options: argparse.Namespace) -> dict[str, Way]:
    """The ways to run a model by name, eager first; those that cannot run it are told and left out."""
    makers = {"eager": lambda: in_full_package(folder)}
    if options.compile:
        makers["compiled"] = lambda: in_full_package(folder, compiled=True)
    makers["onnx"] = lambda: in_full_package(folder, backend="onnx")
    if options.openvino:
        makers["openvino"] = lambda: in_full_package(folder, backend="openvino")
    makers["runtime"] = lambda: in_runtime(folder)
    ways = {}
    for name, make in makers.items():
        try:
            ways[name] = make()
        except PertinenceError as error:
            print(f"{name}: {error}")
    return ways


def check_answers(ways: dict[str, Way], images: list[torch.Tensor]) -> np.ndarray:
    """Print how far routes and answers are those of eager; the experts that eager ran, bool (n, N)."""
    expected, routes = ways["eager"].route(images)
    for name, way in ways.items():
        logits, ran = way.route(way.images(images))
        same, answers = (ran == routes).all(1), logits.argmax(1) == expected.argmax(1)
        apart = np.abs(logits[same] - expected[same]).max()
        print(
            f"{name}: {100 * same.mean():.2f} % the same routes, {100 * answers.mean():.2f} % the same answers of "
            f"{len(images)}, logits within {apart:.1e}"
        )
    return routes


def timed(ways: dict[str, Way], routes: np.ndarray, images: list[torch.Tensor], size: int, reference: int, options):
    """Seconds of each way over all images, turn by turn: routed, the reference expert, the experts alone."""
    starts, functions = range(0, len(images), size), {}
    for name, way in ways.items():
        batches = [way.images(images[start : start + size]) for start in starts]
        mine = [
            (index, [batch[row] for row in np.flatnonzero(ran[:, index])])
            for batch, ran in zip(batches, (routes[start : start + size] for start in starts), strict=True)
            for index in range(routes.shape[1])
            if ran[:, index].any()
        ]

        def routed(way=way, batches=batches) -> None:
            for batch in batches:
                way.route(batch)

        def alone(way=way, batches=batches) -> None:
            for batch in batches:
                way.run_expert(reference, batch)

        def ideal(way=way, mine=mine) -> None:
            for index, part in mine:
                way.run_expert(index, part)

        functions |= {(name, "routed"): routed, (name, "reference"): alone, (name, "ideal"): ideal}
    return take_turns(functions, options.turns, time.perf_counter if options.wall else time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", choices=POOLS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--wall", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = searched_model(options.pool, options.folder)
    model = PertinenceForImageClassification.from_pretrained(folder, trust_remote_code=True, backend="torch")
    rows = images_of(options.pool, "test")
    chosen = np.linspace(0, len(rows) - 1, options.images).round().astype(int)
    images = [decode_image(image) for image in rows.select(chosen)["image"][:]]
    ways = opened_ways(folder, options)
    print(f"\n{options.pool}, {model.config.operating_point}, {options.threads} thread(s)")
    routes = check_answers(ways, images)
    reference, gmacs = model.config.reference_index, model(images).gmacs.mean().item()
    saved = 1 - gmacs / model.config.experts[reference]["gmacs"]
    name = model.config.expert_names[reference]
    ran = ", ".join(f"{share:.2f}" for share in routes.mean(0))
    print(f"operations saved against {name}: {100 * saved:.1f} %; share of the images by expert: {ran}\n")
    print(
        f"| batch | backend | images/s | times eager | {name}: images/s | times eager | time saved | at most | GMACs |"
    )
    print("| ---: | --- | ---: | --- | ---: | --- | --- | ---: | ---: |")
    for size in options.batch_size:
        seconds = timed(ways, routes, images, size, reference, options)
        for way in ways:
            routed, alone, ideal = (seconds[way, what] for what in ("routed", "reference", "ideal"))
            cells = [
                str(size),
                way,
                f"{len(images) / np.median(routed):.0f}",
                spread(seconds["eager", "routed"] / routed, ".2f"),
                f"{len(images) / np.median(alone):.0f}",
                spread(seconds["eager", "reference"] / alone, ".2f"),
                f"{spread(100 * (1 - routed / alone), '.1f')} %",
                f"{100 * np.median(1 - ideal / alone):.1f} %",
                f"{100 * saved:.1f} %",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
