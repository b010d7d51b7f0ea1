"""The front on images of a form that the pool has not seen, and the monitor that is to notice it.

    uv run python tests/benchmarks/shift.py --cache-dir runs/shift-cache

Searched once on `validation`. `test` is divided in two: a half is reported on, so that the monitor's counts are of it,
and the other half is what the monitor sees, clean or corrupted. The tables are of all of `test`, clean and corrupted:
JPEG, gaussian blur, gaussian noise and contrast, each at three strengths, made on the fly, the same for the same image
and seed. Printed are saving and accuracy against the largest expert (paired, ± standard error) of the points that the
default rule chose on `validation`, areas of whole curves, and after how many images the monitor alarms, over orders
of the images. "After 750 quiet": that many clean images come first; counted is from the first corrupted one.
"""

import argparse
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageFilter
from transformers.utils import logging

from pertinence import DispatcherSearch, PertinenceForImageClassification, SearchArguments, SearchResult
from pertinence.data.dataset import LabelledImages
from pertinence.evaluation.monitoring import RoutingMonitor
from pertinence.evaluation.outcomes import route_predictions
from pertinence.evaluation.report import Evaluation, Series, evaluate_front
from pertinence.predictions.predict import predict
from pertinence.predictions.predictions import Predictions
from pertinence.routing.confidence import count_answers
from pertinence.routing.policy import Routing


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
POOLS = ["cifar10:8,20,32,44,56", "cifar100:20,32,44,56"]
STRENGTHS = {
    "jpeg, quality": (90, 70, 50),
    "blur, sigma": (0.4, 0.6, 0.9),
    "noise, sd": (0.02, 0.04, 0.08),
    "contrast, factor": (0.75, 0.5, 0.25),
}
QUIET = 750


def corrupt(image: Image.Image, kind: str, strength: float, rng: np.random.Generator) -> Image.Image:
    """One image in another form."""
    pixels = np.asarray(image, dtype=np.float64)
    if kind.startswith("jpeg"):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(strength))
        return Image.open(buffer).convert("RGB")
    if kind.startswith("blur"):
        return image.filter(ImageFilter.GaussianBlur(strength))
    if kind.startswith("noise"):
        pixels = pixels + rng.normal(0, 255 * strength, pixels.shape)
    else:
        mean = pixels.mean((0, 1))
        pixels = mean + strength * (pixels - mean)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def corrupted(dataset: datasets.Dataset, kind: str, strength: float, seed: int) -> datasets.Dataset:
    """All images in another form, in memory, as PNG, which loses nothing."""
    encoded = []
    for index, image in enumerate(dataset["image"]):
        buffer = io.BytesIO()
        rng = np.random.default_rng([seed, index])
        corrupt(image.convert("RGB"), kind, strength, rng).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": dataset.features["label"]})
    return datasets.Dataset.from_dict({"image": encoded, "label": dataset["label"][:]}, features)


@dataclass(frozen=True)
class Measured:
    """One form of the test images."""

    name: str
    evaluation: Evaluation
    predictions: Predictions
    answers: Routing


def measure(
    name: str, images: datasets.Dataset, result: SearchResult, accelerator: Accelerator, cache: str | None
) -> Measured:
    """Run the pool over the images, or take what the cache has, and measure everything that the search tuned."""
    evaluation, found = result.evaluation, result.found
    predictions = predict(result.model.experts, LabelledImages(images), accelerator, cache_dir=cache)
    point = evaluation.front.find(evaluation.default)
    answers = [routing for _, routing in route_predictions(point, found.heads[point.name], predictions)]
    assert len(answers) == 1
    measured = evaluate_front(
        evaluation.front, found.heads, predictions, point.name, found.baselines, found.select_experts
    )
    return Measured(name, measured, predictions, answers[0])


def alarms(
    model: PertinenceForImageClassification,
    streams: Sequence[Sequence[tuple[Routing, np.ndarray]]],
    rate: float,
    references: Sequence[torch.Tensor] | None = None,
) -> list[int | None]:
    """After how many images the monitor alarms on each stream of (answers, rows)."""
    found = []
    for index, stream in enumerate(streams):
        reference = None if references is None else references[index]
        monitor = RoutingMonitor(model, false_alarm_rate=rate, reference=reference, seed=index)
        for answers, rows in stream:
            monitor.update(Routing(answers.logits[rows], answers.expert_indices[rows], None, {}, None, None))
        found.append(monitor.alarmed_after)
    return found


def describe(found: Sequence[int | None], after: int = 0) -> str:
    """Mean and range of the images up to the alarm, and how many alarmed."""
    early = sum(alarm is not None and alarm <= after for alarm in found)
    delays = [alarm - after for alarm in found if alarm is not None and alarm > after]
    text = f"{len(delays)} of {len(found)}"
    if delays:
        text = f"{statistics.mean(delays):.0f} [{min(delays)} .. {max(delays)}], {text}"
    return text + (f" ({early} before)" if early else "")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("\n| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def study(pool: str, options: argparse.Namespace) -> None:
    name, depths = pool.split(":")
    search, test = (load(name, split, options.limit) for split in ("validation", "test"))
    watched, reported = np.array_split(np.random.default_rng(options.seed).permutation(len(test)), 2)
    args = SearchArguments(
        population=options.population, generations=options.generations, trust_remote_code=True,
        seed=options.seed, cache_dir=options.cache_dir, front_size=40,
    )  # fmt: skip
    experts = [str(ZOO / name / f"resnet{depth}") for depth in depths.split(",")]
    result = DispatcherSearch(experts, search, args, report_dataset=test.select(reported.tolist())).run()
    accelerator = Accelerator(cpu=True)

    def on(form: str, images: datasets.Dataset) -> Measured:
        return measure(form, images, result, accelerator, options.cache_dir)

    forms = [on("clean", test)]
    for kind, strengths in STRENGTHS.items():
        label, unit = kind.split(", ")
        forms += [
            on(f"{label} {unit} {strength}", corrupted(test, kind, strength, options.seed)) for strength in strengths
        ]
    clean, volumes = forms[0], forms[0].evaluation.hypervolumes
    chains = [name for name in clean.evaluation.baselines if "without" not in name]
    best = max(chains, key=volumes.get)

    def point(form: Measured, series: Series) -> list[str]:
        one, versus = series.points[series.default].report, series.versus_reference[series.default]
        saved = 100 * (1 - one.cost / form.evaluation.experts[-1].cost)
        return [f"{saved:.1f} %", f"{100 * versus.mean:+.2f} ± {100 * versus.standard_error:.2f}"]

    rng, quiet = np.random.default_rng(options.seed), min(QUIET, len(watched) // 2)
    orders = [rng.permutation(watched) for _ in range(options.orders)]
    rows, areas = [], []
    for form in forms:
        series = [form.evaluation.series, form.evaluation.baselines[best]]
        cells = [form.name, f"{100 * form.evaluation.experts[-1].accuracy:.2f} %"]
        cells += [cell for one in series for cell in point(form, one)]
        if form is not clean:
            at_once = alarms(result.model, [[(form.answers, order)] for order in orders], options.rate)
            streams = [[(clean.answers, order[:quiet]), (form.answers, order[quiet:])] for order in orders]
            cells += [describe(at_once), describe(alarms(result.model, streams, options.rate), quiet)]
        else:
            cells += ["", ""]
        rows.append(cells)
        areas.append([form.name, *(f"{100 * volume:.2f}" for volume in form.evaluation.hypervolumes.values())])
    print(f"\n{pool}: default point {result.evaluation.default}, best chain: {best}")
    methods = [cell for method in ("cascade", "chain") for cell in (f"{method} saved", f"{method} vs largest")]
    print_table(["images", "largest alone", *methods, "alarm after", f"after {quiet} quiet"], rows)
    print("\nArea under random mixes of points, in % of cost x accuracy, above the cheapest expert on these images:")
    print_table(["images", *volumes], areas)
    print(f"\nFalse alarms at rate {options.rate} on clean images: {quiet_orders(result, clean, watched, options)}")


def quiet_orders(result: SearchResult, clean: Measured, watched: np.ndarray, options: argparse.Namespace) -> str:
    """How many streams of clean images alarm: orders of the watched half, and divisions of all of `test` anew."""
    rng = np.random.default_rng(1)
    orders = [[(clean.answers, rng.permutation(watched))] for _ in range(options.quiet_orders)]
    fixed = alarms(result.model, orders, options.rate)
    everything, logits, last = len(clean.predictions), clean.answers.logits, clean.answers.expert_indices
    divisions = [rng.permutation(everything) for _ in range(options.quiet_orders)]
    half = everything // 2
    references = [count_answers(logits[d[:half]], last[d[:half]], len(result.model.experts)) for d in divisions]
    anew = alarms(result.model, [[(clean.answers, d[half:])] for d in divisions], options.rate, references)
    count: Callable[[list], int] = lambda found: sum(alarm is not None for alarm in found)  # noqa: E731
    return (
        f"{count(fixed)} of {len(fixed)} orders of the {len(watched)} watched images, {count(anew)} of {len(anew)} "
        "divisions of the test images into reported and watched."
    )


def load(name: str, split: str, limit: int | None) -> datasets.Dataset:
    dataset = datasets.load_dataset(str(ZOO / name / "data"), split=split)
    return dataset if limit is None else dataset.select(range(limit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", nargs="+", default=POOLS)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="fixes the halves, the search and the corruptions")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--quiet-orders", type=int, default=200)
    parser.add_argument("--limit", type=int, help="images of each split, to try it out")
    parser.add_argument("--cache-dir", help="where predictions are kept")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for pool in options.pools:
        study(pool, options)


if __name__ == "__main__":
    main()
