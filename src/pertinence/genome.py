"""Search spaces: what the numbers of a genome mean, one space per recipe."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch


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
