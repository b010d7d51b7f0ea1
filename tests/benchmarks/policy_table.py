"""The table of the policy: searches on cached logits, over balanced re-splits of 8,000 images of the zoo.

    uv run python tests/benchmarks/policy_table.py --pools cifar10:8,20,56 --population 50 --generations 50

Each of 8 blocks of images is held out by turns: 5 blocks search, 3 report, in two shuffles: 16 re-splits. Everything
is fitted, tuned and chosen on 5,000 images and judged on the other 3,000. Printed are means over the re-splits, in
points of accuracy against the largest expert, with the standard deviation over the re-splits in brackets. "Area" is
the mean difference of accuracy over savings of 0 to 80 %, with its paired standard error against the first method.

With `--variants` the experts also see smaller images, as `pertinence search --variants auto` chooses them on the
images of each search; the confidence cascades may use the same.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import concatenate_datasets, load_dataset
from huggingface_hub.constants import HF_HOME
from transformers.utils import logging

from pertinence import SearchArguments
from pertinence.data.dataset import LabelledImages
from pertinence.evaluation.report import Series
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.predictions.predict import predict
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.front_search import search_front
from pertinence.search.proposals import TRIED_IMAGES, Trial, best_variant, price_of_pool


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
CACHE = Path(HF_HOME) / "pertinence"
SIZES = (28, 24)
GMACS = {8: 0.01265, 20: 0.04121, 32: 0.06976, 44: 0.09830, 56: 0.12684}
POOLS = ["cifar10:8,20,32,44,56", "cifar10:20,32,56", "cifar10:8,20,56", "cifar100:20,32,44,56"]
BLOCKS, SEARCHED, SHUFFLES = 8, 5, 2
SAVINGS = np.linspace(0, 0.95, 96)


def load_zoo_pool(pool: str) -> tuple[list[str], Predictions]:
    """Names and predictions of a pool like `cifar10:8,20,56`, on all 8,000 images."""
    dataset, depths = pool.split(":")
    depths = [int(depth) for depth in depths.split(",")]
    names = [f"resnet{depth}" for depth in depths]
    with np.load(ZOO / "predictions" / f"{dataset}-logits.npz") as arrays:
        both = {
            name: np.concatenate([arrays[f"{split}_{name}"] for split in ("validation", "test")])
            for name in ["label", *names]
        }
    experts = [ExpertPredictions.keep(torch.from_numpy(both[name].astype(np.float32))) for name in names]
    labels = torch.from_numpy(both["label"].astype(np.int64))
    return names, Predictions.of_pool(experts, labels, PoolCosts.in_gmacs([GMACS[depth] for depth in depths]))


def load_variants(pool: str, names: list[str], predictions: Predictions) -> dict[str, list[list[tuple]]]:
    """For each expert its ladders of variants: (name, predictions of all 8,000 images, GMACs), run once and kept."""
    dataset = pool.split(":")[0]
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
            hits = variant[1].answers(sample.rows) == sample.targets
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


def resplits(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows that search, rows that report."""
    for shuffle in range(SHUFFLES):
        blocks = np.array_split(np.random.default_rng(100 + shuffle).permutation(count), BLOCKS)
        for turn in range(BLOCKS):
            turned = [torch.from_numpy(blocks[(turn + i) % BLOCKS]) for i in range(BLOCKS)]
            yield torch.cat(turned[:SEARCHED]), torch.cat(turned[SEARCHED:])


def measure(series: Series, select_largest: float, largest_cost: float) -> dict[str, np.ndarray]:
    """Of one front: saving, difference and drop at the no-loss point, the default, and 40 % saved; the whole curve."""
    gains = np.array([point.select.accuracy - select_largest for point in series.points])
    costs = np.array([point.select.cost for point in series.points])
    held_costs = np.array([point.report.cost for point in series.points])
    held = np.array([versus.mean for versus in series.versus_largest])
    lossless = [i for i in range(len(gains)) if gains[i] >= 0 and costs[i] < largest_cost]
    budget = np.flatnonzero(costs <= 0.6 * largest_cost)[-1]

    def at(index: int) -> list[float]:
        return [100 * (1 - held_costs[index] / largest_cost), 100 * held[index], 100 * (gains[index] - held[index])]

    order = np.argsort(-held_costs)
    curve = 100 * np.interp(SAVINGS, 1 - held_costs[order] / largest_cost, held[order])
    most = min(costs[-1], largest_cost)  # nothing is gained by spending more
    spent = [costs[costs <= limit].max() / limit for limit in np.geomspace(costs[0], most, 200)]
    nothing = [np.nan] * 3
    return {
        "no loss": np.array(at(lossless[0]) if lossless else nothing),
        "default": np.array(at(series.default)),
        "budget": np.array(at(int(budget))),
        "curve": curve,
        "area": np.array([curve[SAVINGS <= 0.8].mean()]),
        "spent": np.array([len(costs), 100 * np.mean(spent), 100 * np.min(spent)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", nargs="+", default=POOLS)
    parser.add_argument("--recipes", nargs="+", default=["cascade"])
    parser.add_argument("--population", type=int, default=50)
    parser.add_argument("--generations", type=int, default=50)
    parser.add_argument("--variants", action="store_true", help="smaller images, too")
    parser.add_argument("--resplits", type=int, default=BLOCKS * SHUFFLES)
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    accelerator = Accelerator(cpu=True)
    header = ["pool, method", "no loss", "default", "parity", "at 40 % saved", "area", "drop: no loss / 40 %"]
    header.append("points, budget spent: mean / least")
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for pool in options.pools:
        all_names, everything = load_zoo_pool(pool)
        ladders = load_variants(pool, all_names, everything) if options.variants else {}
        measured: dict[str, list[dict[str, np.ndarray]]] = {}
        for index, (search, held) in enumerate(list(resplits(len(everything)))[: options.resplits]):
            names, predictions, smaller = all_names, everything, {}
            if options.variants:
                names, predictions, smaller = with_variants(all_names, everything, ladders, search)
            for recipe in options.recipes:
                args = SearchArguments(
                    recipe=recipe,
                    seed=index,
                    population=options.population,
                    generations=options.generations,
                    baselines=recipe == options.recipes[0],
                )
                images = predictions.subset(search), predictions.subset(held)
                found = search_front(names, *images, args, accelerator, smaller=smaller)
                largest = found.select_experts[-1]
                for name, series in {recipe: found.evaluation.series, **found.evaluation.baselines}.items():
                    row = measure(series, largest.accuracy, largest.cost)
                    measured.setdefault(name, []).append(row)
        reference = np.array([row["area"][0] for row in next(iter(measured.values()))])
        for name, rows in measured.items():
            print(format_row(f"{pool} {name}", rows, reference), flush=True)


def format_row(name: str, rows: list[dict[str, np.ndarray]], reference: np.ndarray) -> str:
    """One line of the table; `reference`: area of the first method, re-split by re-split."""
    mean = {key: np.nanmean([row[key] for row in rows], 0) for key in rows[0]}
    spread = {key: np.nanstd([row[key] for row in rows], 0) for key in rows[0]}
    above = np.flatnonzero(mean["curve"] >= 0)
    parity = f"{100 * SAVINGS[above[-1]]:.0f} %" if len(above) else "none"

    def point(key: str) -> str:
        return f"{mean[key][0]:.1f} %, {mean[key][1]:+.2f} [{spread[key][1]:.2f}]"

    cells = [name, point("no loss"), point("default"), parity, f"{mean['budget'][1]:+.2f} [{spread['budget'][1]:.2f}]"]
    behind = np.array([row["area"][0] for row in rows]) - reference
    cells.append(f"{mean['area'][0]:+.2f} ({behind.mean():+.2f} ± {behind.std() / len(behind) ** 0.5:.2f})")
    cells.append(f"{mean['no loss'][2]:.2f} / {mean['budget'][2]:.2f}")
    cells.append("{:.0f}, {:.1f} % / {:.0f} %".format(*mean["spent"]))
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
