"""Operating points and the front: what may stand in one, what a budget chooses, how it prints."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from pertinence import Figures, Front, OperatingPoint, PertinenceError, Stage


EXPERTS = ["small", "medium", "large"]
STAGES = (Stage(0, "mix", (1.2,)), Stage(1, "both"), Stage(2, "mix", (0.5, 1.0, 1.5)))
CASCADE = OperatingPoint("cascade", "cascade", (0, 1, 2), STAGES)


def figures(accuracy: float, gmacs: float, shares: tuple[float, ...] = (0.5, 0.3, 0.2), samples: int = 400) -> Figures:
    return Figures(accuracy, (accuracy - 0.02, accuracy + 0.02), {"gmacs": gmacs}, shares, samples)


def timed(figures: Figures, milliseconds: float) -> Figures:
    return replace(figures, costs={**figures.costs, "latency": milliseconds}, objective="latency")


def static(name: str, expert: int, **measured: Figures) -> OperatingPoint:
    return OperatingPoint(name, "static", (expert,), **measured)


def cascade(name: str, **measured: Figures) -> OperatingPoint:
    return replace(CASCADE, name=name, **measured)


@pytest.fixture
def front() -> Front:
    """Four points by rising cost, with reports that would choose otherwise."""
    return Front(
        [
            static("cheap", 0, select=figures(0.80, 1.0), report=figures(0.99, 9.0)),
            cascade("middle", select=figures(0.90, 2.0), report=figures(0.70, 8.0)),
            cascade("best", select=figures(0.95, 3.0), report=figures(0.60, 7.0)),
            static("large", 2, select=figures(0.92, 5.0), report=figures(0.50, 0.1)),
        ],
        EXPERTS,
    )


# What an operating point may be


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": ()}, r"members \[\] must be rising pool indices, at least one"),
        ({"members": (0, 2, 1)}, r"members \[0, 2, 1\] must be rising"),
        ({"members": (0, 0, 1)}, r"members \[0, 0, 1\] must be rising"),
        ({"members": (-1, 1)}, r"members \[-1, 1\] do not fit a pool of 3"),
        ({"members": (0, 3)}, r"members \[0, 3\] do not fit a pool of 3"),
        ({"members": (0, 2)}, r"stages follow \[0, 1, 2\], but each must follow one of the members"),
        ({"stages": (Stage(1), Stage(0))}, r"stages follow \[1, 0\].*in order"),
        ({"stages": (Stage(0), Stage(0))}, r"stages follow \[0, 0\].*in order"),
        ({"stages": ()}, "no stage after its first member 0"),
        ({"stages": (Stage(1),)}, "no stage after its first member 0"),
        ({"stages": (Stage(0, "pixels"),)}, "evidence 'pixels' is not one of features, confidence, mix, both"),
        ({"stages": (Stage(0, "mix", (1.0, 1.0)),)}, "after expert 0 has 2 mixing weights, expected 1"),
        ({"stages": (Stage(0), Stage(2, "mix", (1.0,)))}, "after expert 2 has 1 mixing weights, expected 3"),
    ],
    ids=str,
)
def test_an_impossible_point_is_refused(change, words):
    with pytest.raises(PertinenceError, match=f"operating point 'cascade': .*{words}"):
        Front([replace(CASCADE, **change)], EXPERTS)


def test_two_points_of_one_name_are_refused():
    with pytest.raises(PertinenceError, match="two operating points are called 'cascade'"):
        Front([CASCADE, CASCADE], EXPERTS)


@pytest.mark.parametrize(
    ("point", "after"),
    [
        (CASCADE, [0, 1]),
        (replace(CASCADE, recipe="paper", stages=(Stage(0, "features"),)), [0]),
        (static("single", 1), []),
        (replace(CASCADE, members=(2,), stages=(Stage(2, "mix", (1.0,)),)), []),
    ],
    ids=["cascade", "paper", "static", "only-mixes"],
)
def test_decisions_are_the_stages_with_something_left_to_run(point, after):
    assert [stage.after for stage in point.decisions] == after


# What a budget chooses


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ({"gmacs": 1.0}, "cheap"),
        ({"gmacs": 2.9}, "middle"),
        ({"gmacs": 3.0}, "best"),
        ({"gmacs": 100}, "best"),
        ({"accuracy": 0}, "cheap"),
        ({"accuracy": 0.80}, "cheap"),
        ({"accuracy": 0.801}, "middle"),
        ({"accuracy": 0.91}, "best"),
        ({"operating_point": "large"}, "large"),
        ({"operating_point": "fastest"}, "cheap"),
        ({"operating_point": "most-accurate"}, "best"),
    ],
    ids=str,
)
def test_a_budget_chooses_by_the_figures_on_the_search_images(front, budget, name):
    assert front.choose(**budget).name == name


@pytest.mark.parametrize("budget", [{"gmacs": 2.0}, {"accuracy": 0.8}], ids=str)
@pytest.mark.parametrize("other", [figures(0.9, 2.0), figures(0.8, 1.0)], ids=["dearer", "less-accurate"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_budget_never_chooses_what_another_point_dominates(budget, other, order):
    points = [static("better", 0, select=figures(0.9, 1.0)), static("worse", 1, select=other)]
    assert Front(points[::order], EXPERTS).choose(**budget).name == "better"


def test_a_budget_of_milliseconds_goes_by_the_measured_latency():
    points = [
        static("small", 0, select=timed(figures(0.8, 5.0), 1.0)),
        static("large", 1, select=timed(figures(0.9, 1.0), 4.0)),
    ]
    front = Front(points, EXPERTS)
    assert [front.choose(latency_ms=limit).name for limit in (1.0, 3.9, 4.0)] == ["small", "small", "large"]
    with pytest.raises(PertinenceError, match="at most 0.5 ms on the search images; the cheapest, 'small', costs 1$"):
        front.choose(latency_ms=0.5)


def test_a_budget_passes_over_points_that_were_not_measured():
    front = Front([static("unmeasured", 0), static("measured", 1, select=figures(0.5, 1.0))], EXPERTS)
    assert front.choose(gmacs=2).name == front.choose(accuracy=0.1).name == "measured"


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (
            {"gmacs": 0.5},
            "no operating point costs at most 0.5 GMACs on the search images; the cheapest, 'cheap', costs 1$",
        ),
        ({"accuracy": 0.96}, "reaches an accuracy of 0.96 on the search images; the best, 'best', reaches 0.95"),
        ({"operating_point": "cheapest"}, "no operating point 'cheapest'; this model has: cheap, middle, best, large"),
        (
            {"latency_ms": 3.0},
            "no operating point has a latency: run `pertinence benchmark`, search with cost='latency'",
        ),
        (
            {},
            "exactly one of `operating_point`, `max_accuracy_loss`, `max_class_loss`, .*`costs`",
        ),
        ({"costs": {}}, "`costs` is empty, expected a limit for at least one unit"),
        ({"gmacs": 2.0, "accuracy": 0.9}, "give one budget at most, got accuracy and gmacs"),
        ({"gmacs": 2.0, "operating_point": "best"}, "give one budget at most, got operating_point and gmacs"),
    ],
    ids=str,
)
def test_a_budget_that_cannot_be_met_names_the_nearest(front, budget, words):
    with pytest.raises(PertinenceError, match=words):
        front.choose(**budget)


@pytest.mark.parametrize("budget", [{"gmacs": 9.0}, {"accuracy": 0.1}], ids=str)
def test_without_figures_there_is_no_budget(budget):
    with pytest.raises(PertinenceError, match="no operating point was measured.*`operating_point=`"):
        Front([CASCADE], EXPERTS).choose(**budget)


# Finding one by its name


@pytest.mark.parametrize(("name", "found"), [("middle", "middle"), ("fastest", "cheap"), ("most-accurate", "best")])
def test_a_point_is_found_by_its_name(front, name, found):
    assert front.find(name).name == found


@pytest.mark.parametrize("name", ["fastest", "most-accurate"])
def test_a_point_may_itself_have_a_general_name(name):
    points = [static("a", 0, select=figures(0.99, 0.1)), static(name, 1, select=figures(0.5, 1)), static("b", 2)]
    assert Front(points, EXPERTS).find(name).members == (1,)


@pytest.mark.parametrize("name", ["fastest", "most-accurate"])
def test_general_names_exist_without_figures(name):
    assert Front([CASCADE], EXPERTS).find(name) == CASCADE


@pytest.mark.parametrize("name", ["fastest", "most-accurate", "cascade"])
def test_an_empty_front_has_no_point(name):
    with pytest.raises(PertinenceError, match=f"no operating point '{name}'"):
        Front([], EXPERTS).find(name)


# As a sequence, as a table, as JSON


def test_a_front_is_a_sequence_of_points(front):
    assert len(front) == 4
    assert [point.name for point in front] == ["cheap", "middle", "best", "large"]
    assert front[-1] in front
    assert front[1:3] == (front[1], front[2])


def test_a_front_prints_as_a_table():
    points = [
        static("fast", 0, select=figures(0.8, 0.0125), report=figures(0.75, 0.01, (1.0, 0.0, 0.0), 300)),
        cascade("estimated", select=figures(0.9, 1.5)),
        cascade("unmeasured"),
    ]
    header, rule, *rows, note = repr(Front(points, EXPERTS)).splitlines()
    assert note.startswith("Budgets are met by the figures on the search images")
    cells = [re.split(r"\s{2,}", line) for line in [header, *rows]]
    assert cells == [
        ["operating point", "recipe", "accuracy", "95 % interval", "GMACs", *EXPERTS, "images"],
        ["fast", "static", "75.00 %", "73.00 .. 77.00", "0.01", "100 %", "0 %", "0 %", "300 (report)"],
        ["estimated", "cascade", "90.00 %", "88.00 .. 92.00", "1.5", "50 %", "30 %", "20 %", "400 (select)"],
        ["unmeasured", "cascade"],
    ]
    assert set(rule) == {"-"}
    assert len(rule) == max(map(len, [header, *rows]))
    assert {row.index("%") for row in rows[:2]} == {header.index("accuracy") + len("accuracy") - 1}


def test_an_empty_front_prints():
    assert repr(Front([], EXPERTS)) == "Front(empty)"


def test_a_front_comes_back_from_json(front):
    again = Front(map(OperatingPoint.from_dict, json.loads(json.dumps(front.to_list()))), EXPERTS)
    assert list(again) == list(front)


def entry(**change: Any) -> dict[str, Any]:
    """A point as the config stores it, with some values replaced; those of figures one by one."""
    point = cascade("cascade", select=figures(0.9, 1.0), report=figures(0.8, 1.0))
    values = json.loads(json.dumps(point.to_dict()))
    return values | {
        key: {**values[key], **value} if isinstance(value, dict) else value for key, value in change.items()
    }


@pytest.mark.parametrize(
    "malformed",
    [
        {"name": 7},
        {"name": ["cascade"]},
        {"recipe": None},
        {"members": "all"},
        {"members": 3},
        {"stages": None},
        {"stages": [0, 1, 2]},
        {"stages": [{"evidence": "mix"}]},
        {"stages": [{"after": "first"}]},
        {"stages": [{"after": 0, "evidence": ["mix"]}]},
        {"stages": [{"after": 0, "mixing": "equal"}]},
        {"stages": [{"after": 0, "mixing": [[1.0]]}]},
        {"select": [0.9]},
        {"select": {"accuracy": "high"}},
        {"select": {"interval": 0.5}},
        {"select": {"interval": [0.5]}},
        {"select": {"expert_shares": [0.5, 0.5]}},
        {"report": {"gmacs": None}},
    ],
    ids=str,
)
def test_a_malformed_entry_is_refused(malformed):
    with pytest.raises(PertinenceError):
        Front([OperatingPoint.from_dict(entry(**malformed))], EXPERTS)


@pytest.mark.parametrize("values", [7, None, "cascade", []], ids=repr)
def test_an_entry_that_is_no_mapping_is_refused(values):
    with pytest.raises(PertinenceError, match="an entry of `front` is malformed"):
        OperatingPoint.from_dict(values)


@pytest.mark.parametrize("key", ["name", "recipe", "members", "stages"])
def test_an_entry_without_one_of_its_keys_is_refused(key):
    values = entry()
    del values[key]
    with pytest.raises(PertinenceError, match=f"an entry of `front` is malformed.*{key}"):
        OperatingPoint.from_dict(values)


@pytest.mark.parametrize("key", ["accuracy", "interval", "gmacs", "expert_shares", "samples"])
def test_figures_without_one_of_their_keys_are_refused(key):
    values = entry()
    del values["select"][key]
    with pytest.raises(PertinenceError, match=f"an entry of `front` is malformed.*{key}"):
        OperatingPoint.from_dict(values)


def test_unknown_keys_are_ignored():
    stages = [{**stage, "colour": "red"} for stage in entry()["stages"]]
    unknown = entry(stages=stages, select={"mood": "good"}, note="new")
    assert OperatingPoint.from_dict(unknown) == OperatingPoint.from_dict(entry())
