"""Search spaces: what the numbers of a genome mean, one space per recipe.

A space has `lower` and `upper` bounds (G,), `seeds` (S, G), genomes that the first population starts with, and, where
it is more than a baseline, `neutral` ones, which take no search."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from .cascade import MAX_WEIGHT, PRICES, CascadeSettings
from .chains import ChainFamily


@dataclass(frozen=True)
class PaperSpace:
    """Genome of the recipe `paper` (PERTINENCE, arXiv 2507.01695): N x N penalties and the class weighting scheme.

    The penalties P[true, predicted] lie in [0, 100]; those of the diagonal have no effect, since a right decision
    costs nothing. The last gene, in [0, 3), chooses by its integer part one of the weighting schemes.

    Args:
        num_experts: N.
    """

    num_experts: int
    schemes = ("INS", "ISNS", "ENS")

    @property
    def lower(self) -> np.ndarray:
        return np.zeros(self.num_experts**2 + 1)

    @property
    def upper(self) -> np.ndarray:
        scheme = np.nextafter(float(len(self.schemes)), 0.0)
        return np.append(np.full(self.num_experts**2, 100.0), scheme)

    @property
    def seeds(self) -> np.ndarray:
        return np.empty((0, len(self.lower)))

    @property
    def neutral(self) -> np.ndarray:
        """Equal penalties, with each weighting scheme."""
        penalties = np.full((len(self.schemes), self.num_experts**2), 50.0)
        return np.column_stack([penalties, np.arange(len(self.schemes)) + 0.5])

    def decode(self, genomes: np.ndarray, counts: torch.Tensor) -> torch.Tensor:
        """What an image costs in the loss that is of one class and was taken for another: weight x penalty.

        Args:
            genomes: (P, N * N + 1).
            counts: int64 (N,), how many fit images have each class.

        Returns:
            float32 (P, N, N), indexed [individual, true, predicted]; zero on the diagonal.
        """
        penalties = torch.from_numpy(genomes[:, :-1]).float().reshape(-1, self.num_experts, self.num_experts)
        penalties = penalties * (1 - torch.eye(self.num_experts))
        schemes = torch.from_numpy(np.floor(genomes[:, -1]).astype(np.int64))
        return class_weights(counts)[schemes].unsqueeze(2) * penalties

    def initial_weights(self, genomes: np.ndarray, num_features: int) -> torch.Tensor:
        """Where the training of each individual starts: float32 (P, N, num_features + 1), the last one the bias.

        Uniform, as torch's linear layers start, and drawn from the genome itself, so that the same genome is the same
        individual wherever and whenever it is trained.
        """
        bound = num_features**-0.5
        starts = []
        for genome in np.ascontiguousarray(genomes, dtype=np.float64):
            seed = int.from_bytes(hashlib.sha256(genome.tobytes()).digest()[:8], "little") >> 1
            uniform = torch.rand(self.num_experts, num_features + 1, generator=torch.Generator().manual_seed(seed))
            starts.append((2 * uniform - 1) * bound)
        return torch.stack(starts)


@dataclass(frozen=True)
class CascadeSpace:
    """Genome of the recipe `cascade`: where the chain starts, how far its rungs lie apart, and lambda.

    Few genes, and coarse ones: every free bit costs accuracy on unseen images. What else could be searched (the blend
    of the target, the ridge, the scale of the mixing weights) gains nothing there, and is not. Lambda is one of the
    prices that each fit serves anyway, and only says which point of its curve stands for the individual.

    Args:
        family: the chains that may be chosen.
    """

    family: ChainFamily

    @property
    def lower(self) -> np.ndarray:
        return np.zeros(3)

    @property
    def upper(self) -> np.ndarray:
        family = self.family
        counts = [family.starts, len(family.spacings), len(PRICES)]
        return np.nextafter(np.array(counts, dtype=float), 0.0)

    @property
    def seeds(self) -> np.ndarray:
        """Every chain, at a middle price."""
        choices = itertools.product(range(len(self.family.spacings)), range(self.family.starts))
        return np.array([[start, spacing, len(PRICES) // 2] for spacing, start in choices]) + 0.5

    @property
    def neutral(self) -> np.ndarray:
        """Every start, at the first spacing."""
        return self.seeds[: self.family.starts]

    def decode(self, genome: np.ndarray) -> tuple[CascadeSettings, int]:
        """What to fit, and the index of the price (lambda)."""
        start, spacing, price = (int(gene) for gene in genome)
        return CascadeSettings(self.family.chain(start, self.family.spacings[spacing])), price


@dataclass(frozen=True)
class ThresholdSpace:
    """Genome of a confidence cascade of some length: which experts, thresholds, and a mixing weight for each member.

    A threshold gene g stands for going on below a largest probability of 1 - 10^(-4 g).

    Args:
        num_experts: N.
        num_members: M.
        mixing: whether there are mixing weights.
    """

    num_experts: int
    num_members: int
    mixing: bool = True

    @property
    def lower(self) -> np.ndarray:
        return np.zeros(self.num_members + self.num_members * self.mixing)

    @property
    def upper(self) -> np.ndarray:
        chains = np.nextafter(float(math.comb(self.num_experts, self.num_members)), 0.0)
        weights = np.full(self.num_members * self.mixing, MAX_WEIGHT)
        return np.concatenate([[chains], np.ones(self.num_members - 1), weights])

    @property
    def seeds(self) -> np.ndarray:
        return np.empty((0, len(self.lower)))

    def decode(self, genome: np.ndarray) -> tuple[tuple[int, ...], list[float], list[float] | None]:
        """Members, thresholds (M - 1) and mixing weights (M)."""
        values = genome.tolist()
        thresholds = [1 - 10 ** (-4 * gene) for gene in values[1 : self.num_members]]
        return (
            combination(int(values[0]), self.num_experts, self.num_members),
            thresholds,
            values[self.num_members :] if self.mixing else None,
        )


def combination(rank: int, count: int, size: int) -> tuple[int, ...]:
    """The combination of `size` of `count` numbers of some rank in lexicographic order, without listing the others."""
    chosen, number = [], 0
    while len(chosen) < size:
        with_number = math.comb(count - number - 1, size - len(chosen) - 1)
        if rank < with_number:
            chosen.append(number)
        else:
            rank -= with_number
        number += 1
    return tuple(chosen)


def class_weights(counts: torch.Tensor, beta: float = 0.9999) -> torch.Tensor:
    """The paper's weighting schemes for class counts (N,): INS 1/n, ISNS 1/sqrt(n),
    ENS (1 - b)/(1 - b^n) (Cui et al. 2019).

    Each is scaled to a mean of one over the images, which Adam would cancel anyway; a class without images has weight
    zero. Returns float32 (3, N).
    """
    n = counts.double().clamp_min(1)
    weights = torch.stack([1 / n, n.rsqrt(), (1 - beta) / (1 - beta**n)])
    weights = weights * (counts > 0)
    return (weights * counts.sum() / (weights * counts).sum(1, keepdim=True)).float()
