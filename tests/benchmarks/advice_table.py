"""What `pertinence advise` expects of a pair of experts, against what a search of that pair then reaches.

    uv run python tests/benchmarks/advice_table.py

For every pair of the pools, over balanced re-splits: the gain over random routing that the advice expects on the
search images (see `search/pairs.py`), and that of heads fitted to the same images, measured on the report images.
Printed are the rank correlation over all pairs of the means over re-splits, and how often the difference of accuracy
at 40 % saved lies in the 95 % interval of its difference to the expectation (both sets of images have a spread).
"""

import argparse
import itertools

import numpy as np
from pools import POOLS, balanced_splits, load_benchmark_pool
from scipy.stats import spearmanr
from transformers.utils import logging

from pertinence.evaluation.candidates import static_candidates
from pertinence.evaluation.outcomes import evaluate_experts
from pertinence.search.nested import SAVINGS, _along_savings
from pertinence.search.pairs import PairStudy, PairValue, RoutingCurve
from pertinence.search.recipes.cascade_fit import fit_heads
from pertinence.search.recipes.curves import HeldOut, front_of
from pertinence.search.recipes.outputs import FoldedOutputs
from pertinence.utils.distributed import one_thread


def searched(search, held, pair: tuple[int, int], seed: int) -> PairValue:
    """What heads of a pair that are fitted to the search images are worth on the report images."""
    curve = fit_heads(FoldedOutputs(search, 5, seed), pair)
    statics = static_candidates(evaluate_experts(search), search.reference)
    front = front_of([curve], [statics[index] for index in pair])
    places = [place if place.curve else place._replace(position=pair[place.position]) for place in front]
    right, costs = HeldOut(held).judge_all(places)
    study = PairStudy(held, pair, search.reference)
    saved = 1 - costs / study.costs[search.reference]
    return study.value(RoutingCurve(pair, _along_savings(right, saved), study.costs[pair[0]] <= study.budgets))


@one_thread()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", nargs="+", default=[name for name in POOLS if not name.endswith("s")])
    parser.add_argument("--resplits", type=int, default=8)
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    expected, reached, inside = [], [], []
    print("| pool, pair | expected gain | reached by a search |\n|---|---|---|")
    for name in options.pools:
        names, everything = load_benchmark_pool(name)
        pairs = list(itertools.combinations(range(len(names)), 2))
        values: dict[tuple[int, int], list[tuple[float, float]]] = {pair: [] for pair in pairs}
        for seed, (rows, held_rows) in enumerate(balanced_splits(name, len(everything), options.resplits)):
            search, held = everything.subset(rows), everything.subset(held_rows)
            study = PairStudy(search, tuple(range(len(names))), search.reference)
            for pair in pairs:
                said, found = study.value(study.pair(*pair)), searched(search, held, pair, seed)
                values[pair].append((said.gain, found.gain))
                if said.at[40] is not None:
                    (mean, error), (truth, spread) = said.at[40], found.at[40]
                    inside.append(abs(mean - truth) <= 1.96 * np.hypot(error, spread))
        for pair, both in values.items():
            ours, theirs = 100 * np.mean(both, 0)
            expected.append(ours)
            reached.append(theirs)
            print(f"| {name} {names[pair[0]]} + {names[pair[1]]} | {ours:+.2f} | {theirs:+.2f} |", flush=True)
    print(f"\n{len(expected)} pairs: rank correlation {spearmanr(expected, reached).statistic:.3f}")
    print(f"Difference at {100 * SAVINGS[40]:.0f} % saved within the interval: {100 * np.mean(inside):.1f} %")


if __name__ == "__main__":
    main()
