"""Whether the confidence of a dispatcher can be believed, its promises are kept, and what giving up early saves.

    uv run python tests/benchmarks/certainty.py
    uv run python tests/benchmarks/certainty.py --pools c100 --splits 4 --draws 200

For each re-split of a pool (see `pools.py`) everything is fitted to the search images and judged on the others, which
stand for the population. Of these, `--draws` calibration sets are drawn with replacement. Printed are means over the
re-splits, with paired standard errors over them where two figures are compared:

- calibration: ECE and AURC of the default point, and of the reference expert with temperature scaling;
- promises at 95 % confidence for 1, 2 and 5 %: share of the draws in which the error rate over the population exceeds
  the promise, coverage and cost of the point that a budget chooses and of the default point, beside the reference
  expert with the same procedure; and the cost of the same promise without giving up;
- prediction sets of 90 %: coverage over the population, and size, beside those of the reference expert.

`--clock` instead compares the time of a forward with and without confidence, on CIFAR-10 experts: the median ratio of
turns, and its quartiles.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from pools import POOLS, ZOO, balanced_splits, load_benchmark_pool
from transformers.utils import logging

from pertinence import Budget, PertinenceForImageClassification, Promises, SearchArguments
from pertinence.evaluation.certainty import with_certainty
from pertinence.evaluation.outcomes import route_predictions
from pertinence.evaluation.promising import answerable, promise_error_from, promise_sets
from pertinence.predictions.predictions import Predictions
from pertinence.routing.certainty import NODES, Certainty
from pertinence.routing.front import Front, OperatingPoint
from pertinence.search.front_search import search_front


RATES = (0.01, 0.02, 0.05)
COVERAGE = 0.9


class Procedure:
    """A point that abstains, with the images that stand for the population."""

    def __init__(self, point: OperatingPoint, heads, population: Predictions, reference_cost: float):
        self.point, self.heads, self.population, self.unit = point, heads, population, reference_cost
        self.reached, self.right = answerable(point, heads, population)

    def promise(self, rows: np.ndarray, rate: float) -> float | None:
        """The threshold that a calibration set of these rows gives."""
        reached, right = self.reached[rows], self.right[rows]
        return promise_error_from(self.point, reached, right, rate, 0.05).threshold

    def at(self, threshold: float | None) -> tuple[float, float]:
        """Coverage and error rate over the population."""
        answered = np.zeros(len(self.right), bool) if threshold is None else self.reached >= threshold
        return answered.mean(), (answered & ~self.right).sum() / max(answered.sum(), 1)

    def cost(self, threshold: float | None) -> float:
        """Mean cost, as a share of the reference expert's."""
        if threshold is None:
            return float("nan")
        parts = route_predictions(self.point, self.heads, self.population, threshold)
        return torch.cat([routing.gmacs for _, routing in parts]).mean().item() / self.unit


def choose(front: Front, rate: float, reference) -> OperatingPoint:
    """The point that `set_budget` chooses for a rate, which does not depend on what was calibrated."""
    everything = Promises(
        0.95, 1, "", tuple(promise_error_from(p, np.full(9999, 9.0), np.ones(9999, bool), rate, 0.05) for p in front)
    )
    return Budget(max_error_rate=rate).choose(front, reference, everything)


def judge(name: str, search: Predictions, population: Predictions, names: list[str], draws: int, seed: int) -> dict:
    found = search_front(names, search, population, SearchArguments(baselines=False), Accelerator(cpu=True))
    evaluation = found.evaluation
    front, reference = evaluation.front, evaluation.reference
    unit = population.costs.of_experts[reference]
    alone = with_certainty(OperatingPoint("reference", "static", (reference,)), (), search)
    measured = {
        f"{key} {one}": getattr(report, key).value
        for one, report in zip(("ours", "ref"), evaluation.certainty, strict=True)
        for key in ("ece", "aurc")
    }
    rng, count = np.random.default_rng(seed), len(population)
    for rate in RATES:
        chosen = choose(front, rate, found.select_experts[reference])
        for label, point in {"chosen": chosen, "default": front.find(evaluation.default), "ref": alone}.items():
            procedure = Procedure(point, found.heads.get(point.name, ()), population, unit)
            thresholds = [procedure.promise(rng.integers(0, count, count), rate) for _ in range(draws)]
            results = np.array([procedure.at(threshold) for threshold in thresholds])
            key = f"{rate:g} {label}"
            measured[f"{key} broken"] = (results[:, 1] > rate).mean()
            measured[f"{key} coverage"] = results[:, 0].mean()
            measured[f"{key} kept"] = np.mean([one is not None for one in thresholds])
            median = np.median([one for one in thresholds if one is not None] or [np.nan])
            measured[f"{key} cost"] = procedure.cost(None if np.isnan(median) else float(median))
            if label != "ref":
                whole = replace(point, certainty=point.certainty.without_giving_up())
                other = Procedure(whole, procedure.heads, population, unit)
                kept = [other.promise(rng.integers(0, count, count), rate) for _ in range(draws // 10)]
                measured[f"{key} cost whole"] = other.cost(-100.0)
                measured[f"{key} coverage whole"] = np.mean([other.at(threshold)[0] for threshold in kept])
    for label, point in {"default": front.find(evaluation.default), "ref": alone}.items():
        heads, halves = found.heads.get(point.name, ()), torch.from_numpy(rng.permutation(count)).chunk(2)
        (promise,) = promise_sets(point, heads, population.subset(halves[0].sort().values), [COVERAGE])
        covered, sizes = [], []
        for chunk, routing in route_predictions(point, heads, population.subset(halves[1].sort().values)):
            sets = promise.sets(routing.logits)
            if population.tail > 1:
                sets[:, -1] = False
            covered.append(sets.gather(1, chunk.target_columns[:, None]).double())
            sizes.append(sets.sum(1).double())
        measured[f"sets {label} coverage"] = torch.cat(covered).mean().item()
        measured[f"sets {label} size"] = torch.cat(sizes).mean().item()
    return measured


def clock(turns: int) -> None:
    experts = [str(ZOO / "cifar10" / f"resnet{depth}") for depth in (8, 20, 56)]
    model = PertinenceForImageClassification.from_experts(experts, 0.9, trust_remote_code=True)
    plain = model.front
    rows = np.ones((3, 4), np.float32)
    certainty = Certainty(rows, rows, rows, np.ones((len(NODES), 4), np.float32))
    certain = Front([replace(plain[0], certainty=certainty)], plain.expert_names)
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
    for size, calls in ((1, 20), (32, 3)):
        ratios = []
        for turn in range(turns + 1):
            spent = {}
            for front in (plain, certain) if turn % 2 else (certain, plain):
                model._front = front
                start = time.process_time()
                for _ in range(calls):
                    model(images[:size])
                spent[front is certain] = time.process_time() - start
            ratios.append(spent[True] / spent[False])
        low, middle, high = np.quantile(ratios[1:], [0.25, 0.5, 0.75])
        print(f"batch {size}: {middle:.3f} ({low:.3f} .. {high:.3f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", nargs="+", default=["c10", "c100", "p5"], choices=POOLS)
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--clock", action="store_true")
    args = parser.parse_args()
    logging.set_verbosity_error()
    if args.clock:
        return clock(60)
    for pool in args.pools:
        names, predictions = load_benchmark_pool(pool)
        found = []
        for split, (search, others) in enumerate(balanced_splits(pool, len(predictions), args.splits)):
            measured = judge(pool, predictions.subset(search), predictions.subset(others), names, args.draws, split)
            found.append(measured)
            print(pool, split, {key: round(float(value), 4) for key, value in measured.items()}, flush=True)
        print(f"{pool}: {len(found)} re-splits, {args.draws} draws each")
        for key in found[0]:
            values = np.array([one[key] for one in found])
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            print(f"  {key:28} {np.nanmean(values):.4f} ± {error:.4f}")
        pairs = [("ece ours", "ece ref"), ("aurc ours", "aurc ref")]
        for rate in RATES:
            pairs += [(f"{rate:g} {label} coverage", f"{rate:g} ref coverage") for label in ("chosen", "default")]
        for ours, theirs in pairs:
            gaps = np.array([one[ours] - one[theirs] for one in found])
            error = gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            print(f"  {ours} - {theirs}: {gaps.mean():+.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
