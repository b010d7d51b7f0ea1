"""Labels found by their names: spelling, repeats, aliases and WordNet ids."""

import random

import pytest
from timm.data import ImageNetInfo
from torchvision.models import ResNet18_Weights

from pertinence import PertinenceError
from pertinence.data.labels import in_same_order, match_by_name, places_by_name, read_names


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


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (("Cat", "big_dog"), ("cat ", "big-dog"), True),
        (("cat", "dog", "cow"), ("cat, Felis catus", "dog", "cow"), True),
        (("cat", "dog", "cow"), ("dog, Canis lupus", "cat", "cow"), False),
        (("crane", "dog", "crane"), ("crane", "crane", "dog"), False),
        (("cat", "dog"), ("cat", "dog", "cow"), False),
        (("cat", "dog"), ("dog", "cow"), False),
        (("0", "1", "10", "2"), ("0", "1", "2", "10"), False),
        (("cat", "dog"), ("Katze", "Hund"), None),
        (("label 0", "LABEL_1"), ("cat", "dog"), None),
        (("n01440764", "n01443537"), ("tench", "goldfish, Carassius auratus"), True),
        (("-1", "0", "1"), ("1", "0", "-1"), False),
        (("n01443537", "n01440764"), ("tench", "goldfish, Carassius auratus"), False),
    ],
)
def test_what_names_tell_of_an_order(ours, theirs, expected):
    assert in_same_order(named(*ours), named(*theirs)) is expected
    assert in_same_order(named(*theirs), named(*ours)) is expected


def test_one_name_of_two_meanings_is_no_other_order():
    """As the crane of ImageNet, which is a bird in one list and a machine in the other."""
    names = [f"animal {index}" for index in range(100)]
    ours, theirs = [*names, "crane", "crane machine"], [*names, "crane bird", "crane"]
    assert in_same_order(named(*ours), named(*theirs)) is True
    assert in_same_order(named(*ours[-30:]), named(*theirs[-30:])) is None
    assert in_same_order(named(*names), named(names[1], names[0], *names[2:])) is False, "two that change places"


def test_the_lists_of_imagenet_agree():
    info, others = ImageNetInfo(), ResNet18_Weights.DEFAULT.meta["categories"]
    for names in (info.label_names(), info.label_descriptions()):
        assert in_same_order(named(*names), named(*others)) is True
        assert in_same_order(named(*names[1:], names[0]), named(*others)) is False


def test_names_in_a_config_are_text_by_rising_index():
    assert list(read_names({"10": "k", **{str(index): index for index in range(10)}}, 11).items()) == [
        *((index, str(index)) for index in range(10)),
        (10, "k"),
    ]
    assert read_names({1: None, 0: "cat"}, 2) == {0: "cat", 1: "LABEL_1"}
    assert read_names(["cat", "dog"], 2) == {0: "cat", 1: "dog"}
    assert read_names(None, 2) == read_names({}, 2) == {0: "LABEL_0", 1: "LABEL_1"}
    assert set(read_names({"one": "cat", "1": "dog"}, 2)) == {"one", 1}
