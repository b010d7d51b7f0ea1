"""What 8-bit rungs are worth: `search --variants auto --cost latency --backend onnx` with and without them.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/int8_rungs.py cifar10
    OMP_NUM_THREADS=1 uv run python tests/benchmarks/int8_rungs.py imagenet

Both searches choose among the same measured variants, smaller inputs and 8 bits; only one of them may choose 8 bits.
Every expert and variant is run over all images once, and timed once, in turns with its original. The images are
divided anew for each search: each block reports once while the others search (CIFAR-10: quarters; ImageNet: halves,
twice). The 128 images that calibrate 8-bit graphs never report.

It prints accuracy, answers and time of the 8-bit experts beside those in 32 bits, the variants and default points of
each search, and the difference of the two fronts on report images at equal time, with its paired standard error.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from backends import FOLDER, POOLS, images_of
from datasets import concatenate_datasets
from transformers.utils import logging

from pertinence import SearchArguments
from pertinence.data.dataset import LabelledImages, match_all, raise_or
from pertinence.data.splits import sample_rows
from pertinence.evaluation.outcomes import evaluate_point
from pertinence.experts.costs import measure_latency
from pertinence.experts.expert import Expert
from pertinence.experts.pool import pool_labels
from pertinence.predictions.predict import predict
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import GMACS, LATENCY, PoolCosts
from pertinence.search.front_search import FoundFront, search_front
from pertinence.search.proposals import TRIED_IMAGES, Trial, _ladders, _variant, best_variant, price_of_pool
from pertinence.search.steps import SearchPool, load, merged


INT8 = "onnx-int8"
CALIBRATED, COMPARED = 128, 256
BLOCKS = {"cifar10": (4, 1), "imagenet": (2, 2)}
"""Blocks that the images are divided into, and how often they are shuffled."""
BUDGETS = np.arange(0.10, 1.001, 0.05)
"""Times at which fronts are compared, as shares of the time of the most accurate expert."""
CPU = torch.device("cpu")


@dataclass
class Measured:
    """Experts and their variants on all images: each is run once and timed once.

    Attributes:
        images: all images.
        calibration: those for 8-bit graphs.
        args: settings of the search.
        found: experts with their latency, and their predictions, by name.
    """

    images: LabelledImages
    calibration: list[torch.Tensor]
    args: SearchArguments
    found: dict[str, tuple[Expert, ExpertPredictions]] = field(default_factory=dict)

    def add(self, expert: Expert, milliseconds: float) -> Expert:
        costs = {**expert.entry.costs, LATENCY: milliseconds}
        expert = expert.with_entry(expert.entry.replace(costs=costs))
        options = {"batch_size": self.args.batch_size, "cache_dir": self.args.cache_dir}
        own = predict([expert], self.images, Accelerator(cpu=True), **options).experts[0]
        self.found[expert.entry.name] = expert, own
        return expert

    def variant(self, expert: Expert, how: dict[str, Any]) -> Expert:
        """A variant of an expert; its time is that of the expert times the ratio of both, measured in turns."""
        key = f"{expert.entry.name} {sorted(how.items())}"
        if key not in self.found:
            made = _variant(expert, how, self.calibration)
            ours, theirs = measure_latency([expert, made], self.images[0], self.args.batch_size, CPU)
            made = self.add(made, expert.entry.costs[LATENCY] * theirs / ours)
            self.found[key] = self.found[made.entry.name]
        return self.found[key][0]

    def right(self, expert: Expert) -> torch.Tensor:
        """bool (n,)"""
        return self.found[expert.entry.name][1].top_labels() == self.images.labels

    def predictions(self, pool: SearchPool) -> Predictions:
        costs = {unit: tuple(expert.entry.costs[unit] for expert in pool.experts) for unit in (GMACS, LATENCY)}
        own = [self.found[expert.entry.name][1] for expert in pool.experts]
        return Predictions.of_pool(own, self.images.labels, PoolCosts(costs, objective=LATENCY))


def proposed(measured: Measured, pool: SearchPool, rows: torch.Tensor, with_int8: bool) -> SearchPool:
    """The pool with the variants that `--variants auto` chooses on search images; see `propose_variants`."""
    sample = rows[sample_rows(len(rows), TRIED_IMAGES)]
    right = torch.stack([measured.right(expert)[sample] for expert in pool.experts], 1)
    limit = price_of_pool(right, [expert.entry.costs[LATENCY] for expert in pool.experts])
    variants = {}
    for index, expert in enumerate(pool.experts[:-1]):

        def attempt(how: dict[str, Any], expert: Expert = expert, index: int = index) -> Trial | None:
            variant = measured.variant(expert, how)
            saving = 1 - variant.entry.costs[LATENCY] / expert.entry.costs[LATENCY]
            return Trial.of(variant, measured.right(variant)[sample], right[:, index], saving) if saving > 0 else None

        ladders = [[how for how in ladder if with_int8 or how.get("backend") != INT8] for ladder in _rungs(expert)]
        best = best_variant(ladders, attempt, limit)
        if best is not None:
            variants[expert.entry.name] = best.variant
    return merged(pool, variants)


def _rungs(expert: Expert) -> Iterator[Iterator[dict[str, Any]]]:
    return _ladders(expert, True, CPU)


def divisions(
    count: int, fixed: torch.Tensor, blocks: int, shuffles: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows that search and rows that report; `fixed` rows always search."""
    others = np.setdiff1d(np.arange(count), fixed.numpy())
    for shuffle in range(shuffles):
        parts = np.array_split(np.random.default_rng(100 + shuffle).permutation(others), blocks)
        for turn in range(blocks):
            rest = np.concatenate([fixed.numpy(), *(part for index, part in enumerate(parts) if index != turn)])
            yield torch.from_numpy(np.sort(rest)), torch.from_numpy(np.sort(parts[turn]))


def at_budgets(found: FoundFront, report: Predictions, reference: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each report image is answered rightly at each budget of time, float (budgets, n), and whether there is a
    point for it, bool (budgets,). Points are chosen by their figures on the search images."""
    points = found.evaluation.front
    correct = {}
    rows, is_met = [], []
    for share in BUDGETS:
        within = [point for point in points if point.select.cost <= share * reference]
        is_met.append(bool(within))
        best = max(within, key=lambda point: point.select.accuracy, default=points[0])
        if best.name not in correct:
            correct[best.name] = evaluate_point(best, found.heads[best.name], report).correct.double().numpy()
        rows.append(correct[best.name])
    return np.stack(rows), np.array(is_met)


def show_int8(measured: Measured, pool: SearchPool) -> None:
    print("| expert | ms in 32 bits | in 8 bits | accuracy | in 8 bits | difference | same answers |")
    print("| --- | ---: | ---: | ---: | ---: | --- | ---: |")
    for expert in pool.experts:
        variant = measured.variant(expert, {"backend": INT8})
        ours, theirs = (measured.right(one).double() for one in (expert, variant))
        same = [measured.found[one.entry.name][1].top_labels() for one in (expert, variant)]
        error = (theirs - ours).std() / len(ours) ** 0.5
        cells = [
            expert.entry.name,
            *(f"{one.entry.costs[LATENCY]:.3f}" for one in (expert, variant)),
            *(f"{100 * one.mean():.2f} %" for one in (ours, theirs)),
            f"{100 * (theirs - ours).mean():+.2f} ± {100 * error:.2f}",
            f"{100 * (same[0] == same[1]).double().mean():.2f} %",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def described(pool: SearchPool, found: FoundFront) -> str:
    evaluation = found.evaluation
    default = evaluation.front.find(evaluation.default)
    reference = evaluation.experts[evaluation.reference]
    names = ", ".join(pool.names[index] for index in pool.smaller.values()) or "none"
    members = ", ".join(pool.names[member] for member in default.members)
    versus = evaluation.series.versus_reference[evaluation.series.default]
    return (
        f"variants {names}; default {members}: {100 * (1 - default.report.cost / reference.cost):.1f} % of the time "
        f"saved, {100 * versus.mean:+.2f} ± {100 * versus.standard_error:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", choices=POOLS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--images", type=int, help="of the pool; default: all")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    args = SearchArguments(
        cost="latency",
        variants="auto",
        backend="onnx",
        batch_size=options.batch_size,
        cache_dir=str(options.folder / "cache"),
        trust_remote_code=True,
        baselines=False,
        device="cpu",
    )
    splits = ["validation"] if options.pool == "imagenet" else ["validation", "test"]
    rows = concatenate_datasets([images_of(options.pool, split) for split in splits])
    if options.images:
        rows = rows.select(sample_rows(len(rows), options.images).tolist())
    by_name = "by_name" if options.pool == "imagenet" else None
    images = LabelledImages(rows, label_map=by_name)
    fixed = sample_rows(len(images), CALIBRATED)
    compared = np.setdiff1d(np.arange(len(images)), fixed.numpy())[:COMPARED]
    calibration = raise_or([images[row] for row in [*fixed.tolist(), *compared.tolist()]])
    pool = load(POOLS[options.pool], args, by_name)
    match_all([images], pool_labels(pool.experts))
    measured = Measured(images, calibration, args)
    latency = measure_latency(pool.experts, images[0], options.batch_size, CPU)
    experts = [measured.add(expert, one) for expert, one in zip(pool.experts, latency, strict=True)]
    pool = SearchPool(sorted(experts, key=lambda expert: expert.entry.costs[LATENCY]), None, LATENCY)
    show_int8(measured, pool)
    gained = np.zeros(len(images))
    curve: list[np.ndarray] = []
    shuffles = BLOCKS[options.pool][1]
    for number, (search_rows, report_rows) in enumerate(divisions(len(images), fixed, *BLOCKS[options.pool])):
        right = {}
        for with_int8 in (True, False):
            chosen = proposed(measured, pool, search_rows, with_int8)
            everything = measured.predictions(chosen)
            search, report = everything.subset(search_rows), everything.subset(report_rows)
            found = search_front(chosen.names, search, report, args, Accelerator(cpu=True), None, chosen.smaller)
            reference = max(found.select_experts, key=lambda figures: figures.accuracy).cost
            right[with_int8] = at_budgets(found, report, reference)
            print(
                f"\nsplit {number}, {'with' if with_int8 else 'without'} 8 bits: {described(chosen, found)}",
                flush=True,
            )
        is_met = right[True][1] & right[False][1]
        difference = (right[True][0] - right[False][0])[is_met]
        gained[report_rows.numpy()] += difference.mean(0) / shuffles
        curve.append(np.where(is_met, (right[True][0] - right[False][0]).mean(1), np.nan))
    reported = np.setdiff1d(np.arange(len(images)), fixed.numpy())
    values = gained[reported]
    print(
        f"\n{options.pool}: fronts with 8 bits minus without, mean over the budgets, {len(reported)} images: "
        f"{100 * values.mean():+.3f} ± {100 * values.std() / len(values) ** 0.5:.3f} points"
    )
    print("| time | " + " | ".join(f"{100 * share:.0f} %" for share in BUDGETS) + " |")
    print("| --- " * (1 + len(BUDGETS)) + "|")
    with warnings.catch_warnings():
        means = np.nanmean(np.stack(curve), 0)
    print("| points | " + " | ".join(f"{100 * value:+.2f}" for value in means) + " |")


if __name__ == "__main__":
    main()
