"""An evidence of your own: whether an expert recognises anything in an image, and how clearly.

    pertinence search --plugins evidence --recipe paper --evidence energy ...

The energy score (Liu et al. 2020, arXiv 2010.03759), log(sum(exp(logits))), is small where no label finds support,
which probabilities cannot show. The margin is the lead of the largest logit over the second largest.
"""

import numpy as np

from pertinence import register_evidence


class Energy:
    name, version = "energy", 1  # raise the version when numbers change: older heads are refused then
    reads, num_statistics = ("logits",), 0  # of `Known`; nothing is fitted to the search images

    def width(self, num_experts, num_features):
        return 2

    def fit(self, logits, tail=1):
        return None

    def compute(self, known, statistics):
        second, largest = np.partition(known.logits, -2)[:, -2:].T
        energy = largest + np.log(np.exp(known.logits - largest[:, None]).sum(1))
        return np.stack([energy, largest - second], 1)


register_evidence(Energy())
