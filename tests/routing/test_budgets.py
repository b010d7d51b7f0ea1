"""Budgets out of range are refused with what was probably meant; measured milliseconds need no batch size."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from pertinence import PertinenceError
from pertinence.routing.budgets import choose_by_budget
from pertinence.routing.front import Front, OperatingPoint
from pertinence.routing.metrics import Figures, Latency


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
        PertinenceError, match="latency was measured for .*: give device=... with latency_ms in Python"
    ):
        timed.choose(latency_ms=5.0)


def test_a_saving_refers_to_the_reference_expert(front):
    reference = Figures(0.9, (0.0, 1.0), {"gmacs": 2.0}, (1.0,), 100)
    assert choose_by_budget(front, reference.to_dict(), saving=0.5).name == "small"
    assert choose_by_budget(front, reference.to_dict(), saving=0).name == "large"
    with pytest.raises(PertinenceError, match="saves 60 % of the reference expert's cost .* 'small', saves 50.0 %"):
        choose_by_budget(front, reference.to_dict(), saving=0.6)
    with pytest.raises(
        PertinenceError, match=r"saving=50 is out of range, expected a share from 0 to 1: 50 % is 0\.5"
    ):
        choose_by_budget(front, reference.to_dict(), saving=50)
    with pytest.raises(PertinenceError, match="saving='half' is not a budget, expected a number"):
        choose_by_budget(front, reference.to_dict(), saving="half")
