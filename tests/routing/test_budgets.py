"""Budgets out of range are refused with what was probably meant; measured milliseconds need no batch size."""

import inspect
import logging
from dataclasses import fields, replace

import numpy as np
import pytest

from pertinence import Budget, PertinenceError, PertinenceForImageClassification
from pertinence.routing.front import Front, OperatingPoint
from pertinence.routing.metrics import Figures, Latency
from pertinence.runtime import RuntimeModel


def point(name: str, cost: float, accuracy: float, *latency: Latency) -> OperatingPoint:
    figures = Figures(accuracy, (0.0, 1.0), {"gmacs": cost}, (1.0,), 100)
    return OperatingPoint(name, "static", (0,), select=figures, latency=latency)


@pytest.fixture
def front() -> Front:
    return Front([point("small", 1.0, 0.8), point("large", 2.0, 0.9)], ["only"])


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ({"accuracy": 95}, r"accuracy=95 is out of range, expected a share from 0 to 1: 95 % is 0\.95"),
        ({"accuracy": 900}, "accuracy=900 is out of range, expected a share from 0 to 1$"),
        ({"accuracy": "0.9"}, "accuracy='0.9' is not a budget, expected a number"),
        ({"accuracy": float("nan")}, "accuracy=nan is not a budget"),
        ({"gmacs": "0.05"}, "gmacs='0.05' is not a budget, expected a number"),
        ({"gmacs": -1}, "gmacs=-1 is not a budget"),
        ({"gmacs": True}, "gmacs=True is not a budget"),
        ({"latency_ms": float("inf")}, "latency_ms=inf is not a budget"),
        ({"costs": {"gmacs": None}}, "gmacs=None is not a budget"),
        ({"costs": 3.0}, r"`costs` is 3\.0, expected a limit for at least one unit"),
    ],
)
def test_what_is_no_budget_is_refused(front, budget, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        front.choose(**budget)


def test_numbers_of_numpy_are_numbers(front):
    assert front.choose(gmacs=np.float32(1.5)).name == "small"
    assert front.choose(accuracy=np.float64(0.85)).name == "large"


def test_of_several_measured_batch_sizes_the_smallest_is_taken_and_that_is_said(front, caplog):
    one, many = Latency("cpu", 1, 4.0, 3.9, 4.1), Latency("cpu", 32, 1.0, 0.9, 1.1)
    slow = replace(one, milliseconds=9.0)
    timed = Front([front[0].replaced_latency([many, one]), front[1].replaced_latency([many, slow])], ["only"])
    with caplog.at_level(logging.WARNING):
        assert timed.choose(latency_ms=5.0).name == "small", "at batch 32 the large one would do"
    assert "batch size 1 is used, as none was given" in caplog.text
    assert timed.choose(latency_ms=5.0, batch_size=32).name == "large"


def test_milliseconds_of_several_devices_are_not_mixed_up(front):
    here, there = Latency("cpu", 1, 4.0, 3.9, 4.1), Latency("gpu", 1, 1.0, 0.9, 1.1)
    timed = Front([one.replaced_latency([here, there]) for one in front], ["only"])
    with pytest.raises(
        PertinenceError, match="latency was measured for .*: give device=... \\(--latency-device\\) with it"
    ):
        timed.choose(latency_ms=5.0)


def test_a_saving_refers_to_the_reference_expert(front):
    reference = Figures(0.9, (0.0, 1.0), {"gmacs": 2.0}, (1.0,), 100)
    assert Budget(saving=0.5).choose(front, reference).name == "small"
    assert Budget(saving=0).choose(front, reference).name == "large"
    with pytest.raises(PertinenceError, match="saves 60 % of the reference expert's cost .* 'small', saves 50.0 %"):
        Budget(saving=0.6).choose(front, reference)
    with pytest.raises(
        PertinenceError, match=r"saving=50 is out of range, expected a share from 0 to 1: 50 % is 0\.5"
    ):
        Budget(saving=50).choose(front, reference)
    with pytest.raises(PertinenceError, match="saving='half' is not a budget, expected a number"):
        Budget(saving="half").choose(front, reference)


@pytest.mark.parametrize(
    "method",
    [Front.choose, PertinenceForImageClassification.set_budget, RuntimeModel.set_budget],
    ids=lambda one: one.__qualname__,
)
def test_what_takes_a_budget_takes_each_of_its_fields_as_a_keyword(method):
    (first, *keywords) = inspect.signature(method).parameters.values()
    assert first.name == "self"
    assert [one.name for one in keywords] == [one.name for one in fields(Budget)]
    assert {one.kind for one in keywords} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ({"gmacs": 1.0, "accuracy": 0.5}, "give one budget at most, got accuracy and gmacs"),
        ({"operating_point": "small", "saving": 0.5}, "give one budget at most, got operating_point and saving"),
        ({"batch_size": 1}, "`device` and `batch_size` say which milliseconds: give `latency_ms` with them"),
    ],
    ids=str,
)
def test_a_budget_is_one_limit(budget, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        Budget(**budget)


def test_a_loss_of_classes_is_met_by_the_cheapest_point_that_spares_them(front):
    spared = [
        replace(one, select=replace(one.select, class_loss=loss))
        for one, loss in zip(front, (0.07, 0.01), strict=True)
    ]
    measured = Front(spared, ["only"])
    assert measured.choose(max_class_loss=0.1).name == "small"
    assert measured.choose(max_class_loss=0.02).name == "large"
    assert Front([OperatingPoint.from_dict(one.to_dict()) for one in spared], ["only"]).to_list() == measured.to_list()
    with pytest.raises(PertinenceError, match=r"every class within 0\.005 .* 'large' comes nearest, with 0\.0100"):
        measured.choose(max_class_loss=0.005)
    with pytest.raises(PertinenceError, match=r"max_class_loss=2 is out of range, .*: 2 points is 0\.02"):
        measured.choose(max_class_loss=2)
    with pytest.raises(PertinenceError, match="as an earlier version searched it: search again"):
        front.choose(max_class_loss=0.02)
    agreeing = [replace(one, select=replace(one.select, measure="agreement")) for one in front]
    with pytest.raises(PertinenceError, match="searched without labels, so there are no classes"):
        Front(agreeing, ["only"]).choose(max_class_loss=0.02)
