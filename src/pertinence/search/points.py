"""Operating points of a front: single experts, names, thinning, and the default point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..evaluation.candidates import Candidate
from ..routing.front import Front, OperatingPoint
from ..routing.heads import Head
from ..routing.names import BEST_BELOW_REFERENCE, CHEAPEST_LOSSLESS, FASTEST, MOST_ACCURATE


def build_front(
    candidates: Sequence[Candidate], expert_names: Sequence[str], reference_cost: float, size: int
) -> tuple[Front, dict[str, tuple[Head, ...]], str]:
    """Name candidates that do not dominate each other (by rising cost), and keep at most `size` of them.

    Returns:
        The front with its `select` figures, the heads of each point by name, and the name of the default point.
    """
    is_lossless = default_point(candidates, reference_cost)[1]
    candidates, default = thinned(candidates, reference_cost, size)
    names = names_by_saving([candidate.cost for candidate in candidates], reference_cost)
    names[0], names[-1] = FASTEST, MOST_ACCURATE
    names[default] = CHEAPEST_LOSSLESS if is_lossless else BEST_BELOW_REFERENCE
    points: list[OperatingPoint] = [
        replace(candidate.point, name=name) for candidate, name in zip(candidates, names, strict=True)
    ]
    heads = {name: candidate.heads for candidate, name in zip(candidates, names, strict=True)}
    return Front(points, expert_names), heads, names[default]


def names_by_saving(costs: Sequence[float], reference_cost: float) -> list[str]:
    """A name for each cost: `saves-62` saves 62 % of the reference's cost, in whole percent, and `adds-8` costs 8 %
    more; where several are equal, those after the first end in `-b`, `-c`, ..."""
    names: list[str] = []
    taken: Counter[str] = Counter()
    for cost in costs:
        saved = round(100 * (1 - cost / reference_cost))
        name = f"saves-{saved}" if saved >= 0 else f"adds-{-saved}"
        names.append(name + (f"-{_letters(taken[name])}" if taken[name] else ""))
        taken[name] += 1
    return names


def _letters(number: int) -> str:
    """The column of a spreadsheet: b for 1, z for 25, aa for 26."""
    letters = ""
    while number >= 0:
        letters, number = chr(ord("a") + number % 26) + letters, number // 26 - 1
    return letters


def thinned(candidates: Sequence[Candidate], reference_cost: float, size: int) -> tuple[list[Candidate], int]:
    """At most `size` of the candidates, and the index of the default among them."""
    default = default_point(candidates, reference_cost)[0]
    kept = thin([c.cost for c in candidates], size, default)
    return [candidates[index] for index in kept], kept.index(default)


def default_point(candidates: Sequence[Candidate], reference_cost: float) -> tuple[int, bool]:
    """Index of the default among candidates that do not dominate each other (by rising cost), and whether it is
    lossless.

    Lossless means: cheaper than the reference expert, and more accurate on the same images by at least half a paired
    standard error. If no point is lossless, the default is the most accurate one that is cheaper. Both go by the
    estimate that chooses, not by what is stated.
    """
    cheaper = [index for index, candidate in enumerate(candidates) if candidate.cost < reference_cost]
    for index in cheaper:
        difference, error = candidates[index].versus_reference
        if difference > 0 and difference >= error / 2:
            return index, True
    return max(cheaper, key=lambda index: candidates[index].estimate, default=0), False


def thin(costs: Sequence[float], size: int, needed: int) -> list[int]:
    """Choose at most `size` points of rising cost, including the first, the last and `needed`.

    Repeatedly removes the point that leaves the smallest gap, so that some point lies just below any budget.
    """
    kept = list(range(len(costs)))
    while len(kept) > max(size, 3):
        gaps = [
            costs[kept[i + 1]] / costs[kept[i - 1]] if kept[i] != needed else float("inf")
            for i in range(1, len(kept) - 1)
        ]
        del kept[1 + gaps.index(min(gaps))]
    return kept
