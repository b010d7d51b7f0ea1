"""Training of the heads of a whole population at once, as matrix products over cached evidence."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...routing.heads import Head


CHUNK = 16
"""Number of individuals that are trained together; a population is padded to whole chunks, so that the result of an
individual does not depend on the others or on their number."""

ALIGNMENT = 16
"""How many numbers of 4 bytes a cache line holds."""

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True)
class FitData:
    """Training data of heads.

    Attributes:
        evidence: float32 (n, E).
        classes: int64 (n,), the expert that each image should be routed to.
        num_experts: size of the pool, N.
    """

    evidence: torch.Tensor
    classes: torch.Tensor
    num_experts: int

    @property
    def counts(self) -> torch.Tensor:
        return torch.bincount(self.classes, minlength=self.num_experts)


def routing_classes(correct: torch.Tensor, unsolved: str = "cheapest") -> torch.Tensor:
    """The paper's routing label of an image: its cheapest correct expert.

    Args:
        correct: bool (n, N), whether each expert is right; experts by rising cost.
        unsolved: label of images that no expert gets right: "cheapest" or "largest"; "dropped": no label.

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

    The loss is mean_i( w[y_i] x P[y_i, argmax z_i] x CE(z_i, y_i) ), minimised by Adam; all individuals have the same
    minibatches in the same order. Evidence is standardised for training, and its statistics are folded into the
    resulting heads.

    Args:
        data: n fit images.
        misroute_costs: float32 (P, N, N), weight x penalty, from `PaperSpace.decode`.
        initial: float32 (P, N, E + 1), initial weights and bias, for standardised evidence.
        epochs, learning_rate, batch_size: parameters of the training.
        seed: random seed of the order of minibatches.

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
    # A matrix product over the whole stack would sum in an order that depends on its size.
    return Head(weight, weights[..., size] - (weight * mean).sum(-1))


def _aligned(size: int) -> int:
    """A size rounded up to whole cache lines: kernels may sum in another order at the edge of an array, and the result
    of an individual would depend on its position."""
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
    """Train weights (E, N, P) in place; the scores of all heads are one matrix product, and gradients are explicit.

    Individuals are the last dimension, so that a softmax over few experts is vectorised over individuals.
    """
    size, num_experts, population = weights.shape
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    one_hot = torch.nn.functional.one_hot(classes, num_experts).to(evidence.dtype)
    # For each class the costs of misrouting it: (N, N, P).
    costs = costs.permute(1, 2, 0).contiguous()
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(evidence), generator=generator).to(evidence.device).split(batch_size):
            step += 1
            # Padding repeats the first row of the batch, with weight zero.
            filled = torch.cat([rows, rows[:1].expand(_aligned(len(rows)) - len(rows))])
            weigh = (torch.arange(len(filled), device=rows.device) < len(rows)) / len(rows)
            batch = evidence[filled]
            scores = (batch @ weights.view(size, -1)).view(-1, num_experts, population)
            largest, predicted = scores.max(1, keepdim=True)
            exponentials = (scores - largest).exp_()
            slopes = exponentials / exponentials.sum(1, keepdim=True)
            # P[y_i, argmax z_i] for every image and individual, a factor of each image's cross-entropy.
            factors = costs[classes[filled]].gather(1, predicted) * weigh.view(-1, 1, 1)
            slopes.sub_(one_hot[filled].unsqueeze(2)).mul_(factors)
            gradient = (batch.T @ slopes.view(len(filled), -1)).view_as(weights)
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            scale = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
            weights.addcdiv_(first, scale, value=-learning_rate / (1 - BETAS[0] ** step))
