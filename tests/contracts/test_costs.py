"""What every unit of cost keeps to: ours, and one from outside the package (examples/plugins/cost.py)."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pertinence import (
    OperatingPoint,
    PertinenceError,
    PertinenceForImageClassification,
    Stage,
    evaluate_model,
    register_cost,
)
from pertinence.experts.costs import Measurement, measured_costs
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.routing.costs import COSTS, Cost, PoolCosts
from pertinence.routing.heads import threshold_head
from pertinence.routing.policy import route


UNITS = ("gmacs", "latency", "parameters", "megabytes")
VALUES = np.array([1.5, 4.0, 9.0])


@pytest.fixture(scope="module", autouse=True)
def example(plug_in):
    """The evidence, too: heads of the search read it."""
    plug_in("evidence")
    return plug_in("cost")


@pytest.fixture(scope="module", params=UNITS)
def cost(request):
    return COSTS.get(request.param)


@pytest.fixture(scope="module")
def pool(digit_experts):
    return load_pool(list(map(str, digit_experts)), LoadOptions())


def test_the_example_is_short(example):
    assert len(Path(example.__file__).read_text().splitlines()) <= 30


def test_it_has_names_for_tables_and_sentences(cost):
    assert cost is COSTS.get(cost.name)
    assert cost.title
    assert cost.unit


def test_it_measures_a_positive_number_of_each_expert(cost, pool):
    how = Measurement(torch.zeros(3, 64, 64, dtype=torch.uint8), 2, torch.device("cpu"))
    values = measured_costs(cost, pool, how)
    assert [type(value) for value in values] == [float] * len(pool)
    assert all(0 < value < math.inf for value in values)
    if not cost.is_measured_here:
        assert measured_costs(cost, pool, how) == values


def test_it_says_whether_backends_change_it(cost, digit_experts):
    """Smaller weights are cheaper just where it depends on the backend."""
    how = Measurement(torch.zeros(3, 64, 64, dtype=torch.uint8), 2, torch.device("cpu"))
    vit = str(digit_experts[1])
    pool = load_pool([vit, {"repo_id": vit, "quantization": "int8"}], LoadOptions())
    whole, quantized = (value for _, value in sorted(zip(names(pool), cost.measure(pool, how), strict=True)))
    assert (whole != quantized) is cost.depends_on_backend


def names(pool) -> list[str]:
    return [expert.entry.name for expert in pool]


def test_what_has_run_costs_nothing_and_nothing_costs_less(cost):
    everything = np.array(np.meshgrid(*[[False, True]] * 3)).reshape(3, -1).T
    for rung in range(3):
        prices = cost.marginal(VALUES, rung, everything)
        assert np.shape(prices) == (8,)
        assert (prices >= 0).all()
        assert (prices <= VALUES[rung]).all()
        assert (prices[everything[:, rung]] == 0).all()
        assert [float(cost.marginal(VALUES, rung, ran)) for ran in everything] == prices.tolist()


def test_the_more_has_run_the_less_is_to_pay(cost):
    for rung in range(3):
        before = cost.marginal(VALUES, rung, np.zeros(3, dtype=bool))
        for other in range(3):
            assert cost.marginal(VALUES, rung, np.arange(3) == other) <= before


def test_a_head_costs_what_its_weights_do(cost):
    assert cost.of_head(0) == 0
    assert cost.of_head(1000) == pytest.approx(2 * cost.of_head(500))


def test_along_a_chain_it_adds_up_to_what_the_policy_reports(cost):
    pool = PoolCosts({"gmacs": tuple(VALUES), cost.name: tuple(2 * VALUES)}, objective=cost.name)
    assert pool.chain(cost.name, (0, 1, 2)).sum() <= 2 * VALUES.sum()
    point = OperatingPoint("", "thresholds", (0, 1, 2), (Stage(0), Stage(1), Stage(2)))
    heads = [threshold_head(point, stage, 0.7, 3) for stage in point.decisions]
    logits = 3 * torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    routing = route(point, heads, lambda expert, rows: (logits[expert][rows], None), 50, pool)
    assert {int(ran.sum()) for ran in routing.experts_run} == {1, 2, 3}
    for ran, spent, scores in zip(routing.experts_run, routing.costs[cost.name], routing.scores, strict=True):
        decided = int((~scores.isnan().all(1)).sum())
        expected = pool.chain(cost.name, tuple(ran.nonzero().flatten().tolist())).sum()
        assert spent.item() == pytest.approx(expected + decided * cost.of_head(heads[0].size))


# From outside the package


@pytest.fixture(scope="module")
def model(searched):
    return PertinenceForImageClassification.from_pretrained(searched)


def test_searched_and_saved(model, record):
    entries = [expert["costs"]["megabytes"] for expert in model.config.experts]
    sizes = [4 * expert["parameters"] / 1e6 for expert in model.config.experts]
    assert entries == sorted(entries), "the pool is in the order of the cost that was minimised"
    assert entries == pytest.approx(sizes, rel=0.05)
    assert record["settings"]["cost"] == "megabytes"
    assert all(point.select.objective == "megabytes" for point in model.front)
    spent = [point.select.cost for point in model.front]
    assert spent == sorted(spent)
    assert "MB" in str(model.front).splitlines()[0]


def test_a_budget_is_given_in_it(model):
    for point in model.front:
        chosen = model.set_budget(costs={"megabytes": point.select.cost})
        assert chosen.name == model.config.operating_point
        assert chosen.select.cost <= point.select.cost
        affordable = [p for p in model.front if p.select.cost <= point.select.cost]
        assert chosen.select.accuracy == max(p.select.accuracy for p in affordable)
    with pytest.raises(PertinenceError, match="no operating point costs at most 0.001 MB on the search images"):
        model.set_budget(costs={"megabytes": 0.001})


def test_evaluated_in_a_fresh_process(evaluated, model):
    for point, ours in zip(evaluated["front"], model.front, strict=True):
        assert point["costs"]["megabytes"] == ours.report.cost


def test_without_it_a_model_runs_and_takes_budgets_but_is_not_measured(searched, digits, images, monkeypatch):
    expected = PertinenceForImageClassification.from_pretrained(searched)(images(4, 64)).logits
    monkeypatch.delitem(COSTS._registered, "megabytes")
    model = PertinenceForImageClassification.from_pretrained(searched)
    assert torch.equal(model(images(4, 64)).logits, expected)
    assert model.set_budget(costs={"megabytes": 1e6}).select.accuracy == max(p.select.accuracy for p in model.front)
    with pytest.raises(
        PertinenceError, match="the cost of this model's search: cost 'megabytes' is not one of gmacs, latency, param"
    ):
        evaluate_model(model, digits[2])


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 2.0, 0.0], [1.0, -2.0, 3.0], [1.0, 2.0, math.nan]])
def test_a_cost_that_measures_nonsense_is_refused(values, pool):
    wrong = type("Wrong", (Cost,), {"name": "wrong", "measure": lambda self, experts, how: values})()
    with pytest.raises(PertinenceError, match="cost 'wrong' measures .*, expected a positive number for each of 3"):
        measured_costs(wrong, pool, None)


def test_a_cost_that_cannot_be_is_refused():
    with pytest.raises(PertinenceError, match="cost 'gmacs' is a part of pertinence: choose another name"):
        register_cost(type("Again", (Cost,), {"name": "gmacs", "title": "", "unit": ""})())
    with pytest.raises(PertinenceError, match="the cost 'mine' has no title, unit: see `Cost`"):
        register_cost(type("Mine", (Cost,), {"name": "mine"})())
    with pytest.raises(PertinenceError, match="the name of the cost must be one line of text, got None"):
        register_cost(Cost())
