"""The table of the policy: searches on cached predictions of seven pools, over balanced re-splits of their images.

    uv run python tests/benchmarks/policy_table.py
    uv run python tests/benchmarks/policy_table.py --pools c10 c100 --variants

Everything is fitted, tuned and chosen on the search images of a re-split and judged on its report images (see
`pools.py`). Printed are means over the re-splits, in points of accuracy against the most expensive expert. "Area" is
the mean difference of accuracy over savings of 0 to 80 %, with its paired difference to our own front and the standard
error of that over the re-splits; "parity" the saving at which the mean curve crosses zero. At the default point:
saving and difference of accuracy against the reference, the most accurate expert on the search images; and "drop", by
how much its stated lead over the most expensive expert exceeds the lead on the report images.

With `--variants` the CIFAR experts also see smaller images, as `pertinence search --variants auto` chooses them on the
images of each search.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import concatenate_datasets, load_dataset
from huggingface_hub.constants import HF_HOME
from pools import POOLS, ZOO, balanced_splits, load_benchmark_pool
from transformers.utils import logging

from pertinence import SearchArguments
from pertinence.data.dataset import LabelledImages
from pertinence.evaluation.report import Evaluation, Series
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.predictions.predict import predict
from pertinence.predictions.predictions import Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.front_search import search_front
from pertinence.search.proposals import TRIED_IMAGES, Trial, best_variant, price_of_pool


CACHE = Path(HF_HOME) / "pertinence"
SIZES = (28, 24)
SAVINGS = np.linspace(0, 0.95, 96)


def load_variants(pool: str, names: list[str], predictions: Predictions) -> dict[str, list[list[tuple]]]:
    """For each expert its ladders of variants: (name, predictions of all 8,000 images, GMACs), run once and kept."""
    dataset = POOLS[pool][0]
    folder = ZOO / dataset / "data"
    files = {split: str(folder / f"{split}-*.parquet") for split in ("validation", "test")}
    images = LabelledImages(concatenate_datasets(list(load_dataset("parquet", data_files=files).values())))
    assert torch.equal(images.labels, predictions.labels)
    ladders: dict[str, list[list[tuple]]] = {}
    for name in names[:-1]:
        base = {"repo_id": str(ZOO / dataset / name)}
        for by in ("crop", "resize"):
            how = [{**base, "image_size": size, "image_size_by": by} for size in SIZES]
            experts = load_pool([*how, str(ZOO / dataset / name)], LoadOptions(trust_remote_code=True))[:-1]
            said = predict(experts, images, Accelerator(cpu=True), batch_size=250, cache_dir=CACHE)
            rows = [(e.entry.name, p, e.entry.gmacs) for e, p in zip(experts, said.experts, strict=True)]
            ladders.setdefault(name, []).append(rows[::-1])  # the mildest first
    return ladders


def with_variants(
    names: list[str], predictions: Predictions, ladders: dict[str, list[list[tuple]]], search: torch.Tensor
) -> tuple[list[str], Predictions, dict[int, int]]:
    """The pool with the variants that the product's rule chooses on the search images, see `proposals`."""
    sample = predictions.subset(search[:TRIED_IMAGES])
    right = sample.correct()
    limit = price_of_pool(right, predictions.costs.of_experts)
    chosen = {}
    for index, name in enumerate(names[:-1]):

        def attempt(variant: tuple, index: int = index) -> Trial:
            hits = variant[1].top_labels(sample.rows) == sample.targets
            return Trial.of(variant, hits, right[:, index], 1 - variant[2] / predictions.costs.of_experts[index])

        if (best := best_variant(ladders[name], attempt, limit)) is not None:
            chosen[name] = best.variant
    whole = list(zip(names, predictions.experts, predictions.costs.of_experts, strict=True))
    joined = [*sorted([*chosen.values(), *whole[:-1]], key=lambda expert: expert[2]), whole[-1]]
    at = {name: index for index, (name, *_) in enumerate(joined)}
    pool = Predictions.of_pool(
        [expert for _, expert, _ in joined], predictions.labels, PoolCosts.in_gmacs([cost for *_, cost in joined])
    )
    return list(at), pool, {at[name]: at[variant[0]] for name, variant in chosen.items()}


def measure(series: Series, evaluation: Evaluation, searched: float) -> dict[str, float | np.ndarray]:
    """Of one front: its curve against the most expensive expert, whose accuracy on the search images is `searched`,
    and its default point against the reference."""
    largest, reference = evaluation.experts[-1], evaluation.experts[evaluation.reference]
    costs = np.array([figures.cost for figures in series.figures])
    held = np.array([figures.accuracy for figures in series.figures]) - largest.accuracy
    order = np.argsort(-costs)
    curve = 100 * np.interp(SAVINGS, 1 - costs[order] / largest.cost, held[order])
    default = series.points[series.default]
    # As the report images would be as hard as the search images.
    lead = default.report.accuracy - largest.accuracy + searched
    return {
        "curve": curve,
        "area": curve[SAVINGS <= 0.8].mean(),
        "saved": 100 * (1 - default.report.cost / reference.cost),
        "difference": 100 * series.versus_reference[series.default].mean,
        "drop": 100 * (default.select.accuracy - lead),
        "optimism": 100 * ((default.select.out_of_fold or default.select.accuracy) - lead),
        "points": len(costs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", nargs="+", default=list(POOLS))
    parser.add_argument("--recipe", default="cascade")
    parser.add_argument("--variants", action="store_true", help="smaller images, too")
    parser.add_argument("--resplits", type=int, help="default: 8 for CIFAR, 16 for ImageNet")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    accelerator = Accelerator(cpu=True)
    header = ["pool, method", "area", "ours ahead by", "parity", "default: saved", "against the reference"]
    header += ["drop: stated", "drop: out of fold", "points", "CPU seconds"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for pool in options.pools:
        all_names, everything = load_benchmark_pool(pool)
        ladders = load_variants(pool, all_names, everything) if options.variants else {}
        measured: dict[str, list[dict]] = {}
        seconds = []
        resplits = options.resplits or (16 if POOLS[pool][0] == "imagenet" else 8)
        for index, (search, held) in enumerate(balanced_splits(pool, len(everything), resplits)):
            names, predictions, smaller = all_names, everything, {}
            if options.variants:
                names, predictions, smaller = with_variants(all_names, everything, ladders, search)
            args, images = SearchArguments(recipe=options.recipe, seed=index), (search, held)
            start = time.process_time()
            found = search_front(names, *map(predictions.subset, images), args, accelerator, smaller=smaller)
            seconds.append(time.process_time() - start)
            for name, series in {"ours": found.evaluation.series, **found.evaluation.baselines}.items():
                measured.setdefault(name, []).append(
                    measure(series, found.evaluation, found.select_experts[-1].accuracy)
                )
        for name, rows in measured.items():
            print(format_row(f"{pool} {name}", rows, measured["ours"], np.mean(seconds)), flush=True)


def format_row(name: str, rows: list[dict], ours: list[dict], seconds: float) -> str:
    """One line of the table; `ours`: the rows of our own front, re-split by re-split."""
    mean = {key: np.mean([row[key] for row in rows], 0) for key in rows[0]}
    above = np.flatnonzero(mean["curve"] >= 0)
    ahead = np.array([one["area"] for one in ours]) - np.array([row["area"] for row in rows])
    cells = [
        name,
        f"{mean['area']:+.3f}",
        f"{ahead.mean():+.3f} ± {ahead.std(ddof=1) / len(ahead) ** 0.5:.3f}",
        f"{100 * SAVINGS[above[-1]]:.0f} %" if len(above) else "none",
        f"{mean['saved']:.1f} %",
        f"{mean['difference']:+.2f}",
        f"{mean['drop']:+.2f}",
        f"{mean['optimism']:+.2f}",
        f"{mean['points']:.0f}",
        f"{seconds:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
