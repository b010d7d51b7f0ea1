"""Trains the heads of a whole population at once, as matrix products over cached evidence."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...routing.heads import Head


CHUNK = 16
"""Individuals that are trained together; a population is padded to whole chunks, so that an individual's result
depends neither on its neighbours nor on how many there are."""

ALIGNMENT = 16
"""Numbers of 4 bytes in a cache line."""

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True)
class FitData:
    """What heads are fitted on.

    Attributes:
        evidence: float32 (n, E).
        classes: int64 (n,), the expert that each image should go to.
        num_experts: N.
    """

    evidence: torch.Tensor
    classes: torch.Tensor
    num_experts: int

    @property
    def counts(self) -> torch.Tensor:
        return torch.bincount(self.classes, minlength=self.num_experts)


def routing_classes(correct: torch.Tensor, unsolved: str = "cheapest") -> torch.Tensor:
    """The paper's label of an image: its cheapest correct expert.

    Args:
        correct: bool (n, N), experts by rising cost.
        unsolved: "cheapest" or "largest": where an image goes that no expert gets right; "dropped": it has no label.

    Returns:
        int64 (n,); -1 for images without a label.
    """
    fallback = {"cheapest": 0, "largest": correct.shape[1] - 1, "dropped": -1}[unsolved]
    return torch.where(correct.any(1), correct.int().argmax(1), fallback)


def train_paper_heads(
    data: FitData,
    misroute_costs: torch.Tensor,
    initial: torch.Tensor,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Head:
    """Train one head for each individual of a population with the paper's loss.

    loss = mean_i( w[y_i] x P[y_i, argmax z_i] x CE(z_i, y_i) ), by Adam; minibatches and their order are the same for
    all individuals. Evidence is standardised for training, and the statistics are folded into the result.

    Args:
        data: fit images, n of them.
        misroute_costs: float32 (P, N, N), weight x penalty, from `PaperSpace.decode`.
        initial: float32 (P, N, E + 1), weights and bias to start from, for standardised evidence.
        epochs, learning_rate, batch_size: of Adam.
        seed: fixes the order of minibatches.

    Returns:
        P heads in one: weight (P, N, E), bias (P, N).
    """
    mean, std = data.evidence.mean(0), data.evidence.std(0, correction=0).clamp_min(1e-6)
    size, num_experts = data.evidence.shape[1], data.num_experts
    evidence = data.evidence.new_zeros(len(data.evidence), _aligned(size + 1))
    evidence[:, :size], evidence[:, size] = (data.evidence - mean) / std, 1.0
    chunks = []
    for start in range(0, len(misroute_costs), CHUNK):
        part = slice(start, min(start + CHUNK, len(misroute_costs)))
        count = part.stop - start
        costs = misroute_costs.new_zeros(CHUNK, num_experts, num_experts)
        weights = evidence.new_zeros(evidence.shape[1], num_experts, CHUNK)
        costs[:count], weights[: size + 1, :, :count] = misroute_costs[part], initial[part].permute(2, 1, 0)
        order = torch.Generator().manual_seed(seed)
        _train_chunk(weights, evidence, data.classes, costs, epochs, learning_rate, batch_size, order)
        chunks.append(weights[: size + 1, :, :count].permute(2, 1, 0))
    weights = torch.cat(chunks)
    weight = weights[..., :size] / std
    # A product of a whole stack would sum in an order that depends on how many there are.
    return Head(weight, weights[..., size] - (weight * mean).sum(-1))


def _aligned(size: int) -> int:
    """The size rounded up to whole cache lines: a kernel may sum in another order at an edge, and an individual's
    result would depend on its place."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _train_chunk(
    weights: torch.Tensor,
    evidence: torch.Tensor,
    classes: torch.Tensor,
    costs: torch.Tensor,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Train weights (E, N, P) in place, the scores of all heads as one product. Written out, not differentiated.

    Individuals come last, so that a softmax over a handful of experts runs over whole rows of them.
    """
    size, num_experts, population = weights.shape
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    one_hot = torch.nn.functional.one_hot(classes, num_experts).to(evidence.dtype)
    # For each class the costs of taking it for another: (N, N, P).
    costs = costs.permute(1, 2, 0).contiguous()
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(evidence), generator=generator).to(evidence.device).split(batch_size):
            step += 1
            # Rows that fill up a batch repeat its first and weigh nothing.
            filled = torch.cat([rows, rows[:1].expand(_aligned(len(rows)) - len(rows))])
            weigh = (torch.arange(len(filled), device=rows.device) < len(rows)) / len(rows)
            batch = evidence[filled]
            scores = (batch @ weights.view(size, -1)).view(-1, num_experts, population)
            largest, predicted = scores.max(1, keepdim=True)
            exponentials = (scores - largest).exp_()
            slopes = exponentials / exponentials.sum(1, keepdim=True)
            # P[y_i, argmax z_i] for every image and individual, as a factor of each image's cross-entropy.
            factors = costs[classes[filled]].gather(1, predicted) * weigh.view(-1, 1, 1)
            slopes.sub_(one_hot[filled].unsqueeze(2)).mul_(factors)
            gradient = (batch.T @ slopes.view(len(filled), -1)).view_as(weights)
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            scale = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
            weights.addcdiv_(first, scale, value=-learning_rate / (1 - BETAS[0] ** step))
