"""The default point: chosen by the estimate that chooses, not by what is stated."""

from dataclasses import replace

from pertinence.evaluation.candidates import Archive, Candidate
from pertinence.routing.front import OperatingPoint
from pertinence.routing.metrics import Figures
from pertinence.search.points import build_front, default_point, names_by_saving


def candidate(cost: float, stated: float, out_of_fold: float | None, lead: float = -0.1) -> Candidate:
    figures = Figures(stated, (0.0, 1.0), {"gmacs": cost}, (0.5, 0.5), 100, out_of_fold=out_of_fold)
    return Candidate(OperatingPoint("", "static", (0,), select=figures), (), (lead, 0.01))


def test_without_a_lossless_point_the_best_estimate_below_the_reference_is_the_default():
    """What is stated is equal for all three, as it is capped at that of the default."""
    several = [
        candidate(1.0, 0.8, 0.80),
        candidate(2.0, 0.8, 0.83),
        candidate(3.0, 0.8, 0.82),
        candidate(9.0, 0.9, 0.9),
    ]
    assert default_point(several, reference_cost=5.0) == (1, False)
    front, _, default = build_front(several, ("a", "b"), 5.0, 10)
    assert front.find(default).select.gmacs == 2.0


def test_the_cheapest_lossless_point_is_the_default():
    several = [candidate(1.0, 0.8, 0.8), candidate(2.0, 0.8, 0.9, lead=0.004), candidate(3.0, 0.8, 0.9, lead=0.006)]
    assert default_point(several, reference_cost=5.0) == (2, True), "half a standard error is half a point here"


def test_fronts_of_several_recipes_are_merged_by_the_estimate_that_chooses():
    cascade = [candidate(1.0, 0.8, 0.80), candidate(2.0, 0.8, 0.83), candidate(3.0, 0.81, 0.84)]
    paper = [replace(one) for one in (candidate(1.5, 0.82, None), candidate(4.0, 0.83, None))]
    kept = Archive([*cascade, *paper]).candidates
    assert [one.cost for one in kept] == [1.0, 1.5, 2.0, 3.0]


def test_points_are_named_by_what_they_save():
    costs = [1.0, 3.80, 3.81, 3.82, 9.9999, 10.0, 11.2]
    assert names_by_saving(costs, 10.0) == [
        *("saves-90", "saves-62", "saves-62-b", "saves-62-c"),
        *("saves-0", "saves-0-b", "adds-12"),
    ]
    many = names_by_saving([1.0] * 60, 10.0)
    assert len(set(many)) == 60
    assert many[25:28] == ["saves-90-z", "saves-90-aa", "saves-90-ab"]


def test_a_point_prints_as_one_line():
    front, _, default = build_front([candidate(1.0, 0.8, None), candidate(3.0, 0.9, None)], ("a", "b"), 4.0, 10)
    assert str(front.find("fastest")) == "fastest: 80.00 % accuracy at 1 GMACs on 100 search images"
