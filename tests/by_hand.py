"""What the package computes in arrays, written out for one image."""

from itertools import combinations

import numpy as np


def evidence_by_hand(scores: np.ndarray, votes: np.ndarray, ran: np.ndarray, knots: np.ndarray) -> list[float]:
    """The evidence of one image, one statistic after the other."""
    log_probs = scores - np.logaddexp.reduce(scores)
    label = int(log_probs.argmax())
    ranking = np.sort(log_probs)[::-1]
    top = [*ranking[:5], *[-30.0] * max(0, 5 - len(ranking))]
    p1, p2 = np.exp(top[:2])
    log_of_others = max(np.logaddexp.reduce(np.delete(log_probs, label)), -30.0)

    told_apart = np.exp(ranking[:5])
    outcomes = [*told_apart, 1 - told_apart.sum()]
    entropy = -sum(p * np.log(p) for p in outcomes if p > 1e-12)

    experts = [expert for expert in range(len(ran)) if ran[expert]]
    agrees = [ran[expert] and votes[expert] == label for expert in range(len(ran))]
    pairs = [votes[first] == votes[second] for first, second in combinations(experts, 2)]
    last_two_agree = len(experts) > 1 and votes[experts[-1]] == votes[experts[-2]]
    hinges = [max(top[0] - log_of_others - knot, 0) for knot in knots]
    return [
        *np.maximum(top, -30),
        *[p1, p2, p1 - p2, entropy, log_of_others],
        *agrees,
        np.mean(pairs) if pairs else 1,
        *hinges,
        *[hinge * last_two_agree for hinge in hinges],
    ]
