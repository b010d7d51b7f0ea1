"""CIFAR-10 and CIFAR-100 of the zoo: `cascade` against `paper` and every baseline on the test split, seed by seed.

    uv run python tests/benchmarks/zoo_seeds.py --seeds 5
    uv run python tests/benchmarks/zoo_seeds.py --seeds 3 --pools cifar10:resnet56,runs/vit/experts/vit-6m

Searched on `validation`, reported on `test`. Printed: of each method the point that the default rule chooses on the
search images, its saving and its difference to the reference expert on the same report images; mean and range over
seeds.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset
from transformers.utils import logging

from pertinence import DispatcherSearch, SearchArguments


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
METHODS = {
    "cascade": {"recipe": "cascade"},
    "paper": {"recipe": "paper"},
    "paper, with confidence": {"recipe": "paper", "evidence": "both"},
}
POOLS = ["cifar10:resnet8,resnet20,resnet32,resnet44,resnet56", "cifar100:resnet20,resnet32,resnet44,resnet56"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--pools", nargs="+", default=POOLS, help="data set:experts, of the zoo or other folders")
    parser.add_argument("--variants", choices=["none", "auto"], default="none")
    parser.add_argument("--population", type=int, default=50)
    parser.add_argument("--generations", type=int, default=50)
    options = parser.parse_args()
    logging.disable_progress_bar()
    header = ["pool, method", "saved", "vs reference", "vs random mix", "area, %", "gap closed", "drop"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for pool in options.pools:
        dataset, names = pool.split(":")
        splits = [load_dataset(str(ZOO / dataset / "data"), split=split) for split in ("validation", "test")]
        experts = [name if "/" in name else str(ZOO / dataset / name) for name in names.split(",")]
        rows: dict[str, list[list[float]]] = {}
        for seed in range(options.seeds):
            for name in options.methods:
                args = SearchArguments(
                    **METHODS[name],
                    seed=seed,
                    variants=options.variants,
                    population=options.population,
                    generations=options.generations,
                    trust_remote_code=True,
                    baselines=name == "cascade",
                )
                found = DispatcherSearch(experts, splits[0], args, report_dataset=splits[1]).run().evaluation
                reference, volumes = found.experts[found.reference].cost, found.hypervolumes
                gap = volumes["oracle"] - volumes["random-mix"]
                baselines = found.baselines if name == "cascade" else {}
                for method, series in {name: found.series, **baselines}.items():
                    point = series.points[series.default]
                    volume = volumes["front" if method == name else method]
                    rows.setdefault(method, []).append(
                        [
                            100 * (1 - point.report.cost / reference),
                            100 * series.versus_reference[series.default].mean,
                            100 * series.versus_mix[series.default].mean,
                            100 * volume,
                            100 * (volume - volumes["random-mix"]) / gap,
                            100 * found.drop if method == name else np.nan,
                        ]
                    )
        for name, values in rows.items():
            cells = [
                f"{mean:.2f} [{low:.2f} .. {high:.2f}]"
                for mean, low, high in zip(np.mean(values, 0), np.min(values, 0), np.max(values, 0), strict=True)
            ]
            title = f"{dataset} {', '.join(Path(expert).name for expert in experts)}: {name}"
            print("| " + " | ".join([title, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
