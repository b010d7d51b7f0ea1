"""Heads of a population against heads trained one by one, and the paper's labels, weights and loss."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pertinence.routing.heads import Head
from pertinence.search.recipes.paper import PaperSpace, class_weights
from pertinence.search.recipes.paper_training import FitData, routing_classes, train_paper_heads


EXPERTS = 3
SETTINGS = {"epochs": 3, "learning_rate": 1e-2, "batch_size": 64, "seed": 5}


@pytest.fixture
def data() -> FitData:
    generator = torch.Generator().manual_seed(0)
    evidence = torch.randn(300, 8, generator=generator) * 3 + 1
    classes = (evidence[:, :EXPERTS] + torch.randn(300, EXPERTS, generator=generator)).argmax(1)
    return FitData(evidence, classes, EXPERTS)


@pytest.fixture
def genomes() -> np.ndarray:
    space = PaperSpace(EXPERTS)
    return np.random.default_rng(0).uniform(space.lower, space.upper, (5, len(space.lower)))


def train(data: FitData, genomes: np.ndarray, **settings) -> Head:
    space = PaperSpace(EXPERTS)
    costs, initial = space.decode(genomes, data.counts), space.initial_weights(genomes, data.evidence.shape[1])
    return train_paper_heads(data, costs, initial, **(SETTINGS | settings))


def train_with_autograd(data: FitData, genome: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The paper's loss by autograd and torch's own Adam, one individual."""
    mean, std = data.evidence.mean(0), data.evidence.std(0, correction=0)
    evidence = (data.evidence - mean) / std
    layer = torch.nn.Linear(evidence.shape[1], EXPERTS)
    space = PaperSpace(EXPERTS)
    costs, initial = space.decode(genome[None], data.counts)[0], space.initial_weights(genome[None], 8)[0]
    with torch.no_grad():
        layer.weight.copy_(initial[:, :-1])
        layer.bias.copy_(initial[:, -1])
    optimizer = torch.optim.Adam(layer.parameters(), SETTINGS["learning_rate"])
    order = torch.Generator().manual_seed(SETTINGS["seed"])
    for _ in range(SETTINGS["epochs"]):
        for rows in torch.randperm(len(evidence), generator=order).split(SETTINGS["batch_size"]):
            scores, classes = layer(evidence[rows]), data.classes[rows]
            factors = costs[classes, scores.argmax(1)]
            loss = (factors * F.cross_entropy(scores, classes, reduction="none")).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weight = layer.weight.detach() / std
    return weight, layer.bias.detach() - weight @ mean


def test_population_equals_individuals_trained_one_by_one_with_autograd(data, genomes):
    heads = train(data, genomes)
    for index, genome in enumerate(genomes):
        weight, bias = train_with_autograd(data, genome)
        torch.testing.assert_close(heads.weight[index], weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(heads.bias[index], bias, atol=1e-5, rtol=1e-4)


def test_individual_depends_neither_on_its_neighbours_nor_on_its_place(data, genomes):
    together = train(data, genomes)
    alone, reversed_order = train(data, genomes[3:4]), train(data, genomes[::-1].copy())
    assert torch.equal(together.weight[3], alone.weight[0])
    assert torch.equal(together.weight[3], reversed_order.weight[1])
    assert torch.equal(together.bias[3], alone.bias[0])
    assert torch.equal(together.bias[3], reversed_order.bias[1])


def test_population_larger_than_a_chunk_is_the_same(data, genomes):
    assert torch.equal(train(data, np.tile(genomes, (30, 1))).weight[-1], train(data, genomes).weight[-1])


def test_order_of_minibatches_comes_from_the_seed(data, genomes):
    assert not torch.equal(train(data, genomes, seed=5).weight, train(data, genomes, seed=6).weight)


def test_dear_mistakes_are_avoided(data):
    penalties = np.full((2, EXPERTS, EXPERTS), 1.0)
    penalties[1, 2] = 100  # the second individual must not take class 2 for another
    heads = train(data, np.hstack([penalties.reshape(2, -1), np.zeros((2, 1))]), epochs=20)
    decisions = torch.from_numpy(heads.scores(data.evidence.numpy())).argmax(2)
    missed = ((decisions != 2) & (data.classes == 2)).sum(1)
    assert missed[1] < missed[0] / 2


def test_label_is_the_cheapest_correct_expert():
    correct = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]]).bool()
    assert routing_classes(correct).tolist() == [0, 1, 2, 0, 0]
    assert routing_classes(correct, "largest").tolist() == [0, 1, 2, 0, 2]


def test_class_weights_follow_their_formulas():
    counts = torch.tensor([900, 90, 10])
    expected = torch.stack([1 / counts, counts**-0.5, (1 - 0.9999) / (1 - 0.9999**counts)])
    ratios = class_weights(counts) / class_weights(counts)[:, :1]
    torch.testing.assert_close(ratios, expected / expected[:, :1], rtol=1e-4, atol=0)


def test_class_without_images_has_no_weight():
    assert class_weights(torch.tensor([5, 0, 5]))[:, 1].tolist() == [0, 0, 0]


def test_genome_is_decoded_as_penalties_and_scheme():
    space, counts = PaperSpace(2), torch.tensor([30, 10])
    genome = np.array([[7.0, 20.0, 30.0, 7.0, 1.5]])  # 1.5: the second scheme
    expected = class_weights(counts)[1].unsqueeze(1) * torch.tensor([[0.0, 20.0], [30.0, 0.0]])
    assert torch.equal(space.decode(genome, counts)[0], expected)
    assert len(space.lower) == 5
    assert np.floor(space.upper[-1]) == 2
