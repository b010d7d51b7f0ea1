"""What the cut of scores changes: above 256 labels a search keeps the 20 largest of each expert.

    uv run python tests/benchmarks/cut_scores.py

Chains of the zoo's seven mobile ImageNet experts are fitted to all 1,000 scores of 1,300 images, and to what is kept
of them. Printed is by how much the curves differ, point by point: accuracy in points, cost in per cent.
"""

import tempfile

import numpy as np
from accelerate import Accelerator
from datasets import load_dataset
from pools import MOBILE, ZOO, load_benchmark_pool
from transformers.utils import logging

from pertinence.data.dataset import LabelledImages
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.predictions import predictions
from pertinence.predictions.predict import predict
from pertinence.predictions.predictions import Predictions
from pertinence.search.recipes.cascade_fit import fit_heads
from pertinence.search.recipes.outputs import FoldedOutputs
from pertinence.utils.distributed import one_thread


CHAINS = [(0, 1, 2, 3, 4, 5, 6), (1, 4, 6), (4, 6), (1, 3)]


def load_all_scores() -> Predictions:
    """Predictions of the pool `p7` with all scores."""
    predictions.MAX_DENSE_LABELS = 1_000
    images = load_dataset("parquet", data_files=str(ZOO / "imagenet-val" / "data" / "*.parquet"), split="train")
    pool = load_pool([str(ZOO / "imagenet" / name) for name in MOBILE[:7]], LoadOptions(), label_map="by_name")
    with tempfile.TemporaryDirectory() as cache:  # the usual one holds what is kept
        return predict(pool, LabelledImages(images), Accelerator(cpu=True), batch_size=32, cache_dir=cache)


@one_thread()
def main() -> None:
    logging.set_verbosity_error()
    kept = load_benchmark_pool("p7")[1]
    everything = load_all_scores()
    print("| chain | accuracy: mean, most | cost: mean, most |\n|---|---|---|")
    for chain in CHAINS:
        a, b = (fit_heads(FoldedOutputs(one, 5, 0), chain) for one in (everything, kept))
        _, ours, theirs = np.intersect1d(a.fitted, b.fitted, return_indices=True)
        accuracy = 100 * np.abs(a.accuracy[ours] - b.accuracy[theirs])
        cost = 100 * np.abs(b.cost[theirs] / a.cost[ours] - 1)
        print(f"| {chain} | {accuracy.mean():.2f}, {accuracy.max():.2f} | {cost.mean():.1f}, {cost.max():.1f} |")


if __name__ == "__main__":
    main()
