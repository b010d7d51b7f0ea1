"""Labels found by their names: spelling, repeats, aliases and WordNet ids."""

import random

import pytest
from timm.data import ImageNetInfo

from pertinence import PertinenceError
from pertinence.data.labels import match_by_name, places_by_name


def named(*names: str) -> dict[int, str]:
    return dict(enumerate(names))


def test_spelling_does_not_matter():
    assert match_by_name(named("Dog", "tabby_cat", "cow"), named("tabby cat ", "DOG")) == {0: 1, 1: 0}


def test_names_that_stand_equally_often_in_both_are_paired_in_order():
    assert match_by_name(named("crane", "dog", "crane"), named("crane", "crane", "dog")) == {0: 0, 1: 2, 2: 1}
    assert match_by_name(named("crane", "dog", "crane"), named("dog", "crane")) == {1: 0}, "which of them is not known"


def test_aliases_count_where_they_are_unique():
    others = named("tench, Tinca tinca", "cock", "crane, bird", "crane, machine")
    assert match_by_name(named("Tinca tinca", "cock"), others) == {0: 0, 1: 1}
    assert match_by_name(named("crane"), others) == {}
    assert match_by_name(named("tench", "Tinca tinca"), others) == {0: 0}, "one label is not two"
    assert match_by_name(named("cock, rooster"), others) == {0: 1}


def test_wordnet_ids_are_found_among_names_and_among_ids():
    info = ImageNetInfo()
    ids, names = info.label_names(), info.label_descriptions()
    shuffled = random.Random(0).sample(range(1000), 1000)
    # Both cranes are called alike: only their order tells them apart.
    first, second = (index for index, name in enumerate(names) if name == "crane")
    at = {index: place for place, index in enumerate(shuffled)}
    if at[first] > at[second]:
        shuffled[at[first]], shuffled[at[second]] = second, first
    expected = dict(enumerate(shuffled))
    for others in (ids, names):
        for wanted in ([ids[index] for index in shuffled], [names[index] for index in shuffled]):
            assert match_by_name(named(*wanted), named(*others)) == expected
    few = {3: ids[first], 5: ids[second], 7: "n01440764"}
    assert match_by_name({3: ids[second], 7: "n01440764"}, named(*names)) == {3: second, 7: 0}, "of two cranes one"
    assert match_by_name(few, named(*names)) == {3: first, 5: second, 7: 0}
    background = match_by_name(named("background", *names), named(*ids))
    assert background == {index + 1: index for index in range(1000)}


def test_an_id_that_imagenet_does_not_have_is_itself():
    assert match_by_name(named("n99999999", "n01440764"), named("tench, Tinca tinca", "cow")) == {1: 0}
    assert match_by_name(named("n99999999"), named("n99999999")) == {0: 0}


def test_what_is_not_found_is_said():
    with pytest.raises(PertinenceError, match="the pets: .* cannot place 1 labels, .* .cow.: mend it"):
        places_by_name(named("dog", "cow"), named("dog", "cat"), "the pets", "mend it")
    assert places_by_name({3: "cat", 7: "dog"}, named("dog", "cat"), "the pets", "mend it") == [1, 0]
