"""Time and memory of a whole search as predictions grow: 5 experts, 1,000 labels kept as top 20 and remainder.

    uv run python tests/benchmarks/growth.py --rows 5000 50000 500000 1280000

Population 16, 3 generations of `cascade`, tuned baselines and the report on a fifth of the rows; each size in a
process of its own, whose peak memory is read at its end.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from accelerate import Accelerator

from pertinence import SearchArguments
from pertinence.predictions.predictions import KEPT_SCORES, ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.front_search import search_front
from pertinence.search.search import hold_out


EXPERTS, LABELS, AT_ONCE = 5, 1000, 16384


def synthetic(count: int) -> Predictions:
    """Experts of rising skill who find the same images hard; only what is kept of their scores is ever in memory."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, LABELS, (count,), generator=generator)
    ease = torch.rand(count, 1, generator=generator)
    experts = []
    for index in range(EXPERTS):
        parts = []
        for rows in torch.arange(count).split(AT_ONCE):
            logits = torch.randn(len(rows), LABELS, generator=generator)
            logits.scatter_add_(1, labels[rows].unsqueeze(1), (8 + 2 * index) * ease[rows])
            parts.append(ExpertPredictions.keep(logits))
        merged = {key: torch.cat([getattr(part, key) for part in parts]) for key in ("scores", "labels", "remainder")}
        experts.append(ExpertPredictions.from_tensors(merged, LABELS))
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs([0.4, 0.6, 0.9, 1.8, 4.1]))


def measure(count: int) -> None:
    predictions = synthetic(count)
    assert predictions.experts[0].scores.shape[1] == KEPT_SCORES
    start = time.perf_counter()
    args = SearchArguments(population=16, generations=3)
    search, report = hold_out(predictions, args)
    found = search_front([f"expert {index}" for index in range(EXPERTS)], search, report, args, Accelerator(cpu=True))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{count:>9,} rows: {seconds:8.1f} s, {1e6 * seconds / count:8.1f} us a row; peak {peak / 2**30:5.2f} GiB, "
        f"{peak / count / 1024:7.1f} KiB a row; {len(found.evaluation.front)} points",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 50_000, 500_000, 1_280_000])
    parser.add_argument("--only", type=int, help="measure this one in this process")
    options = parser.parse_args()
    if options.only is not None:
        measure(options.only)
        return
    for count in options.rows:
        subprocess.run([sys.executable, __file__, "--only", str(count)], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
