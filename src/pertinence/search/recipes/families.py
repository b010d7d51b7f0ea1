"""Families of cascades: which chains of experts may make a front together, and how their decisions are fitted.

A free choice of members suffers from the winner's curse: among many chains evaluated on the same images the luckiest
one wins, and is worse on others. So a few families are fixed, from simple to rich, and the search chooses among them
(see `search.nested`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .cascade_fit import fit_heads
from .chains import spaced
from .curves import Curve
from .outputs import FoldedOutputs, Members
from .threshold_fit import fit_thresholds


STARTS, THRESHOLDS = "starts", "thresholds"
"""Names of the simplest family, and of the one that anyone would write by hand."""
FITS = {"heads": fit_heads, "thresholds": fit_thresholds}
"""How the decisions of a chain are fitted, by name."""


class Chain(NamedTuple):
    """A cascade to fit.

    Attributes:
        fit: a name in `FITS`.
        members: pool indices, rising.
    """

    fit: str
    members: Members


@dataclass(frozen=True)
class Family:
    """Cascades whose dispatchers make a front together.

    Attributes:
        name: what the log and the record call it.
        chains: the cascades.
    """

    name: str
    chains: tuple[Chain, ...]

    def fit(self, outputs: FoldedOutputs, fitted: dict[Chain, Curve]) -> list[Curve]:
        """The curves of its chains; `fitted` keeps those that other families share."""
        for chain in self.chains:
            if chain not in fitted:
                fitted[chain] = FITS[chain.fit](outputs, chain.members)
        return [fitted[chain] for chain in self.chains]


def starts(rungs: Members, smaller: Mapping[int, int], costs: Sequence[float]) -> Iterable[Members]:
    """Chains of all rungs from each on, the longest first; with a smaller variant of the first rung, too, if there is
    one."""
    for first in range(max(len(rungs) - 1, 1)):
        chain = spaced(rungs[first:], costs)
        yield chain
        if chain[0] in smaller:
            yield tuple(sorted((smaller[chain[0]], *chain[1:])))


def families_of(rungs: Members, smaller: Mapping[int, int], costs: Sequence[float]) -> list[Family]:
    """The families over the rungs of a pool, the simplest first.

    Args:
        rungs: pool indices, rising.
        smaller: for some rungs the pool index of their variant with a smaller input.
        costs: cost of each expert of the pool.
    """
    base = [Chain("heads", chain) for chain in starts(rungs, smaller, costs)]
    # Of a large pool only as many rungs as the longest chain has, so that pairs and triples can be enumerated.
    pairs, triples = (list(itertools.combinations(spaced(rungs, costs), size)) for size in (2, 3))
    simple = dict.fromkeys([*base, *(Chain("heads", pair) for pair in pairs)])
    rich = dict.fromkeys([*simple, *(Chain("heads", triple) for triple in triples)])
    by_hand = [Chain("thresholds", chain) for chain in [*pairs, *triples]]
    families = {STARTS: base, "pairs and starts": simple, "up to three and starts": rich, THRESHOLDS: by_hand}
    return [Family(name, tuple(chains)) for name, chains in families.items()]
