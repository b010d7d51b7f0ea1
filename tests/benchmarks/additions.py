"""Does a genetic algorithm that adds chains to starts pay, in pools whose subsets are too many to enumerate?

    uv run python tests/benchmarks/additions.py
    uv run python tests/benchmarks/additions.py --pools c10 --splits 2

Pools of 16: CIFAR's experts and each on smaller images, and the mobile pool with smaller images. Genomes are up to
three chains of at most four members that are added to the family of starts; the seed adds none. Fitness is the area
of the nested curve of the front (see `pertinence.search.nested`), and the winner counts where it leads the starts
by one paired standard error. Judged on the report images of balanced re-splits, beside the families that the search
compares; all differences are paired with the starts.

Printed are means over the re-splits, in points: the area (mean difference of accuracy to the most expensive expert
over savings of 0 to 80 %) and its difference to that of the starts, what the nested curve promised, and the CPU time.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import concatenate_datasets, load_dataset
from huggingface_hub.constants import HF_HOME
from pools import MOBILE, POOLS, ZOO, balanced_splits
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.problem import Problem as Box
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.optimize import minimize
from transformers.utils import logging

from pertinence.data.dataset import LabelledImages
from pertinence.data.splits import assign_folds
from pertinence.evaluation.candidates import static_candidates
from pertinence.evaluation.outcomes import evaluate_experts
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.predictions.predict import predict
from pertinence.predictions.predictions import Predictions
from pertinence.search.nested import IN_AREA, OUTER_FOLDS, SAVINGS, _along_savings
from pertinence.search.recipes.base import Problem
from pertinence.search.recipes.cascade_fit import fit_heads
from pertinence.search.recipes.curves import HeldOut, front_of
from pertinence.search.recipes.outputs import FoldedOutputs, Members
from pertinence.search.recipes.study import CascadeStudy
from pertinence.utils.distributed import one_thread


CACHE = Path(HF_HOME) / "pertinence"
CHAINS, LONGEST = 3, 4
CIFAR = {"c10": ("cifar10", (8, 20, 32, 44, 56)), "c100": ("cifar100", (20, 32, 44, 56))}
SIZES = [(28, "crop"), (28, "resize"), (24, "crop"), (24, "resize")]
SMALLER = [96, 128, 160, 192, 192, 208, 224]
"""For each expert of the mobile pool but the transformer a smaller input."""


def load_sixteen(pool: str) -> Predictions:
    """Predictions of a pool of 16 for all images."""
    if pool in CIFAR:
        dataset, depths = CIFAR[pool]
        folder = ZOO / dataset / "data"
        files = {split: str(folder / f"{split}-*.parquet") for split in ("validation", "test")}
        images = concatenate_datasets(list(load_dataset("parquet", data_files=files).values()))
        whole = [{"repo_id": str(ZOO / dataset / f"resnet{depth}")} for depth in depths]
        how = [{**one, "image_size": size, "image_size_by": by} for size, by in SIZES for one in whole[:-1]]
        how = how[: 16 - len(whole)]
    else:
        images = load_dataset("parquet", data_files=str(ZOO / "imagenet-val" / "data" / "*.parquet"), split="train")
        whole = [{"repo_id": str(ZOO / "imagenet" / name)} for name in MOBILE]
        how = [{**one, "image_size": size} for one, size in zip(whole, SMALLER, strict=False)]
        how.append({**whole[6], "image_size": 192})
    options = LoadOptions(trust_remote_code=True)
    experts = load_pool([*how, *whole], options, label_map=None if pool in CIFAR else "by_name")
    return predict(experts, LabelledImages(images), Accelerator(cpu=True), batch_size=100, cache_dir=CACHE)


class Fold:
    """A fold of the nested cross-validation: chains are fitted to the other images once, and judged on its own.

    Args:
        train, held: the images of the fit, and those that are left out.
    """

    def __init__(self, train: Predictions, held: Predictions, seed: int):
        self.outputs, self.held, self.images = FoldedOutputs(train, OUTER_FOLDS, seed), held, HeldOut(held)
        self.statics = static_candidates(evaluate_experts(train), train.reference)
        self.judged = {}

    def along_savings(self, chains: list[Members]) -> np.ndarray:
        """Whether the front of some chains is right on each image at each saving: float32 (n, S)."""
        for members in chains:
            if members not in self.judged:
                curve = fit_heads(self.outputs, members)
                self.judged[members] = curve, *self.images.judge(curve, range(len(curve.cost)))
        by_curve = {id(self.judged[members][0]): self.judged[members] for members in chains}
        right, costs = [], []
        for place in front_of([self.judged[members][0] for members in chains], self.statics):
            if place.curve is None:
                right.append(self.images.outputs.right[:, place.position])
                costs.append(self.held.costs.of_experts[place.position])
            else:
                _, hits, spent = by_curve[id(place.curve)]
                right.append(hits[:, place.position])
                costs.append(spent[place.position])
        saved = 1 - np.array(costs) / self.held.costs.of_experts[-1]
        return _along_savings(torch.stack(right, 1), saved)


def nested_areas(folds: list[Fold], chains: list[Members]) -> np.ndarray:
    """The area of each search image, which its fold judges: float64 (n,)."""
    return np.concatenate([fold.along_savings(chains)[:, IN_AREA].mean(1, dtype=np.float64) for fold in folds])


def decode(genome: np.ndarray, rungs: Members) -> list[Members]:
    """The chains of a genome: four genes each, a rung or, below zero, none."""
    chains = [tuple(sorted({rungs[int(gene)] for gene in part if gene >= 0})) for part in genome.reshape(CHAINS, -1)]
    return [*dict.fromkeys(chain for chain in chains if len(chain) > 1)]


class Additions(Box):
    """Genomes of additions to starts, by the area that they lose.

    Args:
        fold: folds of the nested cross-validation.
        starts: chains of the family that is added to.
        rungs: what chains are made of.
    """

    def __init__(self, folds: list[Fold], starts: list[Members], rungs: Members):
        genes = CHAINS * LONGEST
        super().__init__(
            n_var=genes, n_obj=1, xl=np.full(genes, -float(len(rungs))), xu=np.full(genes, len(rungs) - 1e-9)
        )
        self.folds, self.starts, self.rungs = folds, starts, rungs
        self.known: dict[frozenset[Members], float] = {}

    def _evaluate(self, genomes, out, *args, **kwargs):
        for genome in genomes:
            added = frozenset(decode(genome, self.rungs))
            if added not in self.known:
                self.known[added] = nested_areas(self.folds, [*self.starts, *sorted(added)]).mean()
        out["F"] = np.array([[-self.known[frozenset(decode(genome, self.rungs))]] for genome in genomes])


@one_thread()
def compare(search: Predictions, held: Predictions, seed: int, population: int, generations: int) -> dict[str, list]:
    """For each front its curve on the report images, the promised lead over the starts, and CPU seconds."""
    study = CascadeStudy(Problem(search, seed=seed))
    starts = [chain.members for chain in study.families[0].chains]
    rungs = tuple(range(search.num_experts))
    largest = held.correct()[:, -1].double().mean().item()
    images = HeldOut(held)

    def curve_of(places) -> np.ndarray:
        right, costs = images.judge_all(places)
        return 100 * (_along_savings(right, 1 - costs / held.costs.of_experts[-1]).mean(0) - largest)

    def front(chains: list[Members]) -> np.ndarray:
        return curve_of(front_of([fit_heads(study.outputs, chain) for chain in chains], study.statics))

    rows = {}
    start = time.process_time()
    nested = study.nested
    for family in study.compared:
        gain = 100 * nested[family.name].area_gain
        rows[family.name] = [curve_of(study._places_of(family)), gain, 0.0]
    taken = [SAVINGS[study.choice == index] for index in range(len(study.families))]
    chosen = np.stack([rows[family.name][0] for family in study.families])[study.choice, np.arange(len(SAVINGS))]
    rows["families by cost"] = [chosen, 0.0, time.process_time() - start]
    start = time.process_time()
    folds = []
    for padded in assign_folds(search.targets, OUTER_FOLDS, seed + 1, search.copies):
        left_out = padded[padded >= 0]
        others = torch.ones(len(search), dtype=torch.bool).index_fill_(0, left_out, False)
        folds.append(Fold(search.subset(others.nonzero().squeeze(1)), search.subset(left_out), seed))
    problem = Additions(folds, starts, rungs)
    seeds = np.random.default_rng(seed).uniform(problem.xl, problem.xu, (population, problem.n_var))
    seeds[0] = problem.xl
    algorithm = GA(pop_size=population, sampling=seeds, crossover=SBX(prob=0.9, eta=20), mutation=PM(eta=25))
    minimize(problem, algorithm, ("n_gen", generations), seed=seed)
    best = max(problem.known, key=lambda added: problem.known[added])
    difference = nested_areas(folds, [*starts, *sorted(best)]) - nested_areas(folds, starts)
    mean, error = difference.mean(), difference.std() / len(difference) ** 0.5
    spent = time.process_time() - start
    winner = front([*starts, *sorted(best)])
    rows["winner of the GA"] = [winner, 100 * mean, spent]
    rows["the same at one error"] = [winner if mean >= error and mean > 0 else rows["starts"][0], 100 * mean, spent]
    chains = len(folds[0].judged)
    print(
        f"  {len(problem.known)} genomes, {chains} chains, best {sorted(best)}: {100 * mean:+.3f} ± {100 * error:.3f};"
        f" families taken at {[len(one) for one in taken]}",
        flush=True,
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", nargs="+", default=["c10", "c100", "mobile"])
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--generations", type=int, default=10)
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for pool in options.pools:
        everything = load_sixteen(pool)
        print(f"{pool}: {[round(cost, 4) for cost in everything.costs.of_experts]}", flush=True)
        accuracies = 100 * everything.correct().double().mean(0)
        print(f"  {[round(value, 1) for value in accuracies.tolist()]}", flush=True)
        measured: dict[str, list[list]] = {}
        splits = balanced_splits(pool if pool in POOLS else "p7", len(everything), options.splits)
        for index, (search, held) in enumerate(splits):
            found = compare(*map(everything.subset, (search, held)), index, options.population, options.generations)
            for name, row in found.items():
                measured.setdefault(name, []).append(row)
        areas = {name: np.array([row[0][IN_AREA].mean() for row in rows]) for name, rows in measured.items()}
        print("| pool, front | area | against starts | promised | CPU seconds |\n|---|---|---|---|---|")
        for name, rows in measured.items():
            ahead = areas[name] - areas["starts"]
            error = ahead.std(ddof=1) / len(ahead) ** 0.5
            promised, seconds = (np.mean([row[at] for row in rows]) for at in (1, 2))
            print(
                f"| {pool} {name} | {areas[name].mean():+.3f} | {ahead.mean():+.3f} ± {error:.3f}"
                f" | {promised:+.3f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
