"""The paper's budget: a whole population as one tensor program, against the same individuals one by one.

    uv run python tests/benchmarks/training_speed.py

50 generations of 50 individuals, 20 epochs each in batches of 256, on 5,000 images with 64 features of 4 experts. The
one by one training is tensor-resident (no data loader): a linear layer, autograd, torch's Adam. Both are timed in one
run and give the same heads.
"""

import argparse
import time

import numpy as np
import torch
from accelerate import Accelerator

from pertinence import SearchArguments
from pertinence.evaluation.outcomes import evaluate_experts
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.evolution import evolve
from pertinence.search.points import static_candidates
from pertinence.search.recipes.paper import PaperRecipe


EXPERTS, FEATURES, LABELS, FIT, SELECT = 4, 64, 10, 5000, 2000


def synthetic(count: int) -> Predictions:
    """Experts of rising skill, and features of the first that tell how hard an image is."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, LABELS, (count,), generator=generator)
    ease = torch.rand(count, 1, generator=generator)
    experts = []
    for index in range(EXPERTS):
        signal = 4 * (1 + index) * ease * torch.nn.functional.one_hot(labels, LABELS)
        features = None
        if index == 0:
            features = torch.randn(count, FEATURES, generator=generator) + ease
        experts.append(ExpertPredictions.keep(signal + torch.randn(count, LABELS, generator=generator), features))
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs([1.0, 2.0, 4.0, 8.0]))


def train_one(recipe: PaperRecipe, genome: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """One individual with autograd and torch's Adam, on tensors that lie in memory."""
    data, space, args = recipe._data, recipe.space, recipe.arguments
    mean, std = data.evidence.mean(0), data.evidence.std(0, correction=0).clamp_min(1e-6)
    evidence = (data.evidence - mean) / std
    costs = space.decode(genome[None], data.counts)[0]
    initial = space.initial_weights(genome[None], evidence.shape[1])[0]
    layer = torch.nn.Linear(evidence.shape[1], EXPERTS)
    with torch.no_grad():
        layer.weight.copy_(initial[:, :-1])
        layer.bias.copy_(initial[:, -1])
    optimizer = torch.optim.Adam(layer.parameters(), args.learning_rate)
    order = torch.Generator().manual_seed(args.seed)
    for _ in range(args.epochs):
        for rows in torch.randperm(len(evidence), generator=order).split(args.head_batch_size):
            scores, classes = layer(evidence[rows]), data.classes[rows]
            loss = torch.nn.functional.cross_entropy(scores, classes, reduction="none")
            loss = (costs[classes, scores.argmax(1)] * loss).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weight = layer.weight.detach() / std
    return weight, layer.bias.detach() - weight @ mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=10, help="individuals that are trained one by one")
    options = parser.parse_args()
    args = SearchArguments(recipe="paper", evidence="features")
    predictions = synthetic(FIT + SELECT)
    rows = torch.arange(FIT + SELECT)
    recipe = PaperRecipe(predictions, rows[:FIT], rows[FIT:], args.of_recipe("paper"), args.seed)
    genomes = np.random.default_rng(0).uniform(
        recipe.space.lower, recipe.space.upper, (options.sample, EXPERTS**2 + 1)
    )

    train_one(recipe, genomes[0])
    start = time.perf_counter()
    alone = [train_one(recipe, genome) for genome in genomes]
    one_by_one = options.sample / (time.perf_counter() - start)
    together = [candidate.heads[0] for candidate in recipe.evaluate(genomes)]
    apart = max((head.weight - weight).abs().max().item() for head, (weight, _) in zip(together, alone, strict=True))

    start = time.perf_counter()
    evolve(
        recipe,
        Accelerator(cpu=True),
        population=args.population,
        generations=args.generations,
        seed=0,
        reference=(8.0, 0.5),
        initial=static_candidates(evaluate_experts(recipe.select)),
    )
    seconds = time.perf_counter() - start
    population = args.population * args.generations / seconds
    print(f"{args.population * args.generations} individuals in {seconds:.1f} s: {population:.1f} a second")
    print(f"one by one: {one_by_one:.2f} a second (sample of {options.sample}, largest difference {apart:.1e})")
    print(f"ratio: {population / one_by_one:.1f}")


if __name__ == "__main__":
    main()
