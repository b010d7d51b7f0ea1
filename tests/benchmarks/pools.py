"""The pools that the benchmarks of the policy share: real experts on real images, and balanced divisions of them.

The CIFAR pools are cached logits of 8,000 images; the ImageNet pools are run over the zoo's 1,300 images once, and
kept in the cache of predictions.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import load_dataset

from pertinence.data.dataset import LabelledImages
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.predictions.predict import predict
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
GMACS = {8: 0.01265, 20: 0.04121, 32: 0.06976, 44: 0.09830, 56: 0.12684}
MOBILE = [
    *("mobilenet_v1_0.25_128", "mobilenet_v1_0.5_160", "mobilenet_v1_0.75_192", "mobilenet_v2_1.0_224"),
    *("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2", "deit_tiny_patch16_224"),
]
POOLS = {
    "c100": ("cifar100", [20, 32, 44, 56]),
    "c10": ("cifar10", [8, 20, 32, 44, 56]),
    "c100s": ("cifar100", [20, 32, 44, 56]),
    "c10s": ("cifar10", [8, 20, 32, 44, 56]),
    "p5": ("imagenet", [0, 1, 3, 4, 6]),
    "p7": ("imagenet", [0, 1, 2, 3, 4, 5, 6]),
    "pv": ("imagenet", [1, 3, 4, 7]),
}
BLOCKS, SEARCHED, FEW = 8, 5, 1200


def load_benchmark_pool(name: str) -> tuple[list[str], Predictions]:
    """Names and predictions of a pool of `POOLS`, on all its images."""
    dataset, members = POOLS[name]
    return _imagenet(tuple(members)) if dataset == "imagenet" else _cifar(dataset, tuple(members))


def load_cifar_pool(pool: str) -> tuple[list[str], Predictions]:
    """Names and predictions of a pool like `cifar10:8,20,56`, on all 8,000 images."""
    dataset, depths = pool.split(":")
    return _cifar(dataset, tuple(int(depth) for depth in depths.split(",")))


def _cifar(dataset: str, depths: tuple[int, ...]) -> tuple[list[str], Predictions]:
    names = [f"resnet{depth}" for depth in depths]
    with np.load(ZOO / "predictions" / f"{dataset}-logits.npz") as arrays:
        both = {
            name: np.concatenate([arrays[f"{split}_{name}"] for split in ("validation", "test")])
            for name in ["label", *names]
        }
    experts = [ExpertPredictions.keep(torch.from_numpy(both[name].astype(np.float32))) for name in names]
    labels = torch.from_numpy(both["label"].astype(np.int64))
    return names, Predictions.of_pool(experts, labels, PoolCosts.in_gmacs([GMACS[depth] for depth in depths]))


@cache
def _mobile() -> Predictions:
    images = load_dataset("parquet", data_files=str(ZOO / "imagenet-val" / "data" / "*.parquet"), split="train")
    pool = load_pool([str(ZOO / "imagenet" / name) for name in MOBILE], LoadOptions(), label_map="by_name")
    return predict(pool, LabelledImages(images), Accelerator(cpu=True), batch_size=32)


def _imagenet(members: tuple[int, ...]) -> tuple[list[str], Predictions]:
    everything = _mobile()
    costs = everything.costs.values["gmacs"]
    chosen = Predictions.of_pool(
        [everything.experts[member] for member in members],
        everything.labels,
        PoolCosts.in_gmacs([costs[member] for member in members]),
    )
    return [MOBILE[member] for member in members], chosen


def balanced_splits(name: str, count: int, splits: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows that search, and rows that report: for CIFAR five blocks of eight search and three report, in turn (of the
    small pools only 1,200 of the rows search); for ImageNet halves, each of which searches once."""
    is_imagenet = POOLS[name][0] == "imagenet"
    blocks, searched = (2, 1) if is_imagenet else (BLOCKS, SEARCHED)
    for split in range(splits):
        shuffle, turn = divmod(split, blocks)
        parts = np.array_split(np.random.default_rng(100 + shuffle).permutation(count), blocks)
        turned = [torch.from_numpy(parts[(turn + i) % blocks]) for i in range(blocks)]
        search = torch.cat(turned[:searched])
        yield search[:FEW] if name.endswith("s") else search, torch.cat(turned[searched:])
