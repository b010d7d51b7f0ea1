"""Families of cascades: few, from simple to rich, over the rungs of a pool."""

from pertinence.search.recipes.families import FITS, STARTS, THRESHOLDS, Chain, families_of


COSTS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def members_of(families, name: str) -> set[tuple[int, ...]]:
    return {chain.members for family in families if family.name == name for chain in family.chains}


def test_the_simplest_family_runs_from_every_start():
    families = families_of((0, 1, 2, 3), {}, COSTS)
    assert families[0].name == STARTS
    assert families[0].chains[0] == Chain("heads", (0, 1, 2, 3)), "the longest chain comes first"
    assert members_of(families, STARTS) == {(0, 1, 2, 3), (1, 2, 3), (2, 3)}


def test_richer_families_contain_the_simple_ones():
    families = families_of((0, 1, 2, 3), {}, COSTS)
    simple, pairs, triples, by_hand = (set(family.chains) for family in families)
    assert simple < pairs < triples
    assert members_of(families, "pairs and starts") - members_of(families, STARTS) == {
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 2),
        (1, 3),
    }
    assert {len(chain.members) for chain in by_hand} == {2, 3}
    assert len(by_hand) == 6 + 4
    assert all(chain.fit == THRESHOLDS for chain in by_hand)
    assert {chain.fit for family in families for chain in family.chains} == set(FITS)


def test_the_first_rung_may_see_a_smaller_image():
    """Every image pays for the first rung, so the smaller variant of it is an alternative."""
    families = families_of((1, 3, 5), {1: 0, 3: 2, 5: 4}, COSTS)
    assert members_of(families, STARTS) == {(1, 3, 5), (0, 3, 5), (3, 5), (2, 5)}


def test_a_large_pool_enumerates_as_many_rungs_as_a_chain_has():
    rungs = tuple(range(40))
    families = families_of(rungs, {}, [1.1**rung for rung in rungs])
    assert len(families[0].chains) == 39
    assert len(families[-1].chains) <= 28 + 56
