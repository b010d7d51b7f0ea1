"""What a cascade gains from its parts: chains and settings apart, over balanced re-splits (see `pools.py`).

    uv run python tests/benchmarks/ablation.py --pools c100

Each row fits some chains on 5,000 images of each re-split and joins their curves into one front by the out-of-fold
estimates; everything else is on the other 3,000. "Area" is the mean difference of accuracy to the largest expert over
savings of 0 to 80 %, with the paired difference to the first row and its standard error; "drop" is by how much the
estimate at the no-loss point was too good.
"""

import argparse
import itertools
from collections.abc import Iterator

import numpy as np
from policy_table import SAVINGS, load_variants
from pools import balanced_splits, load_benchmark_pool
from transformers.utils import logging

from pertinence.predictions.predictions import Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.recipes.cascade_fit import fit_heads
from pertinence.search.recipes.curves import HeldOut, front_of
from pertinence.search.recipes.outputs import FoldedOutputs


Chain = tuple[tuple[str, str], ...]
"""Names of the experts, and what each is given: "whole", "crop 28", ..."""


class Pool:
    """Every expert on every view of the images: predictions and GMACs."""

    def __init__(self, pool: str):
        self.pool = pool
        self.names, predictions = load_benchmark_pool(pool)
        self.labels = predictions.labels
        whole = zip(self.names, predictions.experts, predictions.costs.of_experts, strict=True)
        self.rungs = {(name, "whole"): (said, gmacs) for name, said, gmacs in whole}
        for name, ladders in load_variants(pool, self.names, predictions).items():
            for by, ladder in zip(("crop", "resize"), ladders, strict=True):
                for variant, said, gmacs in ladder:
                    size = variant.removeprefix(f"{name}-").split("px")[0]
                    self.rungs[name, f"{by} {size}"] = said, gmacs
        self.largest = (self.names[-1], "whole")

    def order(self, rung: tuple[str, str]) -> tuple[bool, float]:
        return rung == self.largest, self.rungs[rung][1]


def rows_of(names: list[str]) -> Iterator[tuple[str, list[Chain], dict]]:
    """Titles, chains, and settings."""

    def chain(start: int, *given: str) -> Chain:
        return tuple(itertools.zip_longest(names[start:], given, fillvalue="whole"))

    starts = range(len(names) - 1)
    plain = [chain(start) for start in starts]
    yield "every start", plain, {}
    yield "the whole chain alone", plain[:1], {}
    yield "target: labels alone", plain, {"blend": 1.0}
    yield "target: belief alone", plain, {"blend": 0.0}
    yield "ridge 1", plain, {"ridge": 1.0}
    yield "ridge 10,000", plain, {"ridge": 1e4}
    for given, whose in (("crop 28", " (the product's)"), ("crop 24", ""), ("resize 28", "")):
        yield f"every start, its first rung {given}{whose}", [chain(start, given) for start in starts], {}
    one_or_two = [
        chain(start, *["crop 28"] * count) for start in starts for count in (1, 2) if start + count < len(names)
    ]
    yield "every start, the first one or two rungs crop 28", one_or_two, {}
    counts = [chain(start, *["crop 28"] * n) for start in starts for n in range(len(names) - start)]
    yield "every start, any number of rungs crop 28", counts, {}
    choices = [[(), ("crop 28",), ("whole",), ("crop 28", "whole")]] * (len(names) - 1) + [[("whole",)]]
    free = [
        tuple((name, given) for name, some in zip(names, chosen, strict=True) for given in some)
        for chosen in itertools.product(*choices)
    ]
    yield "every member free: absent, crop 28, whole, both", [members for members in free if len(members) > 1], {}


def measure(chains: list[Chain], settings: dict, pool: Pool, count: int) -> list[list]:
    """Re-split by re-split: saving and difference at the no-loss point, at 40 %, drop, area."""
    used = sorted({rung for chain in chains for rung in chain} | {pool.largest}, key=pool.order)
    predictions = Predictions.of_pool(
        [pool.rungs[rung][0] for rung in used],
        pool.labels,
        PoolCosts.in_gmacs([pool.rungs[rung][1] for rung in used]),
    )
    largest, results = predictions.costs.of_experts[-1], []
    for index, (search, held) in enumerate(balanced_splits(pool.pool, len(pool.labels), count)):
        last = predictions.num_experts - 1
        outputs, judge = FoldedOutputs(predictions.subset(search), 5, index, reference=last), predictions.subset(held)
        members = {tuple(sorted(used.index(rung) for rung in chain)) for chain in chains}
        places = front_of([fit_heads(outputs, chosen, **settings) for chosen in sorted(members)], [])
        right, spent = HeldOut(judge).judge_all(places)
        found = 100 * (right.double().mean(0).numpy() - judge.correct()[:, -1].double().mean().item())
        curves = [place.curve for place in places]
        gains = [
            100 * (curve.wins[at] - curve.losses[at]) / curve.samples
            for curve, at in zip(curves, [place.position for place in places], strict=True)
        ]
        costs = [place.cost([]) for place in places]
        lossless = next((i for i in range(len(gains)) if gains[i] >= 0), len(gains) - 1)
        budget = max((i for i in range(len(costs)) if costs[i] <= 0.6 * largest), default=0)
        by_cost = np.argsort(-spent)
        curve = np.interp(SAVINGS[SAVINGS <= 0.8], 1 - spent[by_cost] / largest, found[by_cost])
        saved = 100 * (1 - spent[lossless] / largest)
        results.append([saved, found[lossless], found[budget], gains[lossless] - found[lossless], curve.mean()])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", nargs="+", default=["cifar100:20,32,44,56", "cifar10:8,20,32,44,56"])
    parser.add_argument("--resplits", type=int, default=16)
    parser.add_argument("--most-chains", type=int, default=100, help="leave out rows of more chains")
    options = parser.parse_args()
    logging.disable_progress_bar()
    header = ["pool, chains", "chains", "no loss: saved, accuracy", "at 40 % saved", "area", "drop"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for name in options.pools:
        pool, reference = Pool(name), None
        for title, chains, settings in rows_of(pool.names):
            if len(chains) > options.most_chains:
                continue
            results = np.array(measure(chains, settings, pool, options.resplits))
            reference = results[:, 4] if reference is None else reference
            saved, lossless, budget, drop, area = results.mean(0)
            ahead = results[:, 4] - reference
            cells = [f"{name}: {title}", str(len(chains)), f"{saved:.1f} %, {lossless:+.2f}", f"{budget:+.2f}"]
            error = ahead.std() / len(ahead) ** 0.5
            cells += [f"{area:+.2f} ({ahead.mean():+.3f} ± {error:.3f})", f"{drop:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
