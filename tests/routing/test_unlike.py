"""Images unlike the search images: p-values that keep their false-alarm rate, and the expert that answers instead."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from graded_pool import make_predictions
from graded_reports import FRONT, REPORT

from pertinence import OperatingPoint, PertinenceError, SearchArguments
from pertinence.routing.policy import route
from pertinence.routing.unlike import SearchEntropies, UnlikeRule, entropies
from pertinence.search.front_search import search_front
from pertinence.utils.distributed import make_accelerator


def test_entropies_are_those_of_the_softmax_also_of_cut_scores():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.Categorical(logits=logits).entropy().numpy()
    assert entropies(logits) == pytest.approx(exact, abs=1e-5)
    assert entropies(logits.numpy()) == pytest.approx(exact, abs=1e-5)
    spread = torch.cat([logits, logits[:, -1:].expand(-1, 3)], 1)  # the last column stands for four labels
    exact = torch.distributions.Categorical(logits=spread).entropy().numpy()
    assert entropies(logits.numpy(), tail=4) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 20, 21, 500, 20_000])
def test_p_values_are_conformal_and_never_too_small(count):
    rng = np.random.default_rng(count)
    known, new = rng.exponential(size=count).astype(np.float32), rng.exponential(size=3000)
    kept = SearchEntropies.of(known)
    assert len(kept.values) < 90
    exact = (1 + (known[None] >= new[:, None]).sum(1)) / (count + 1)
    p_values = kept.p_values(new)
    # Numbers are kept to seven digits.
    assert (p_values >= exact - 1 / (count + 1) - 1e-12).all()
    assert (p_values >= exact).mean() > 0.999
    assert (p_values <= np.maximum(1.16 * exact, exact + 1 / (count + 1)) + 1e-12).all()
    assert p_values.max() <= 1


def test_ties_count_as_at_least_as_strange():
    kept = SearchEntropies.of(np.array([0.5, 0.5, 0.5, 0.1]))
    assert kept.p_values(np.array([0.6, 0.5, 0.2, 0.1, 0.0])).tolist() == [0.2, 0.8, 0.8, 1.0, 1.0]


def test_false_alarms_are_as_rare_as_set():
    rng = np.random.default_rng(0)
    alarms = [
        (SearchEntropies.of(rng.exponential(size=500)).p_values(rng.exponential(size=500)) <= 0.05).mean()
        for _ in range(200)
    ]
    assert np.mean(alarms) <= 0.05 + 2 * np.std(alarms) / 200**0.5
    assert np.mean(alarms) > 0.03


@pytest.mark.parametrize(
    "values",
    [
        {"images": 3, "values": [0.1, 0.2, 0.3]},
        {"images": 3, "values": [0.3, 0.2]},
        {"images": 3, "values": [0.3, 0.2, float("nan")]},
        {"images": -1, "values": []},
        {"images": 3},
        {"images": 10**30, "values": [0.1]},
        {"images": "3", "values": [0.3, 0.2, 0.1]},
    ],
)
def test_what_cannot_be_entropies_is_refused(values):
    point = {"name": "a", "recipe": "static", "members": [0], "stages": [], "entropies": values}
    with pytest.raises(PertinenceError, match="entropies"):
        OperatingPoint.from_dict(point)


def test_a_rule_is_checked():
    with pytest.raises(PertinenceError, match="ood_action='shout' is not one of 'ignore', 'reference'"):
        UnlikeRule("shout", 0.01, 0)
    for rate in (0, 1, "0.1", float("nan")):
        with pytest.raises(PertinenceError, match="ood_false_alarms must lie between 0 and 1"):
            UnlikeRule("reference", rate, 0)


def test_the_reference_expert_answers_what_is_unlike_the_search_images():
    point, heads = FRONT[1].point, FRONT[1].heads  # small, then medium; large is the reference
    usual = route(point, heads, REPORT.outputs, len(REPORT), REPORT.costs)
    assert usual.p_values is None
    kept = SearchEntropies.of(entropies(usual.logits))
    point = OperatingPoint(point.name, point.recipe, point.members, point.stages, entropies=kept)
    ignored, diverted = (
        route(point, heads, REPORT.outputs, len(REPORT), REPORT.costs, unlike=UnlikeRule(action, 0.1, 2))
        for action in ("ignore", "reference")
    )
    assert torch.equal(ignored.logits, usual.logits)
    assert torch.equal(ignored.p_values, diverted.p_values)
    odd = diverted.p_values <= 0.1
    assert 0.05 * len(REPORT) < odd.sum() <= 0.1 * len(REPORT)
    assert torch.equal(diverted.logits[odd], REPORT.experts[2].scores[odd])
    assert torch.equal(diverted.logits[~odd], usual.logits[~odd])
    assert (diverted.expert_indices[odd] == 2).all()
    assert diverted.experts_run[odd, 2].all()
    assert not diverted.experts_run[~odd, 2].any()
    assert torch.allclose(diverted.gmacs - usual.gmacs, 10.0 * odd.double())
    # Where the reference expert has run, nothing is left to ask.
    again = route(point, heads, REPORT.outputs, len(REPORT), REPORT.costs, unlike=UnlikeRule("reference", 0.1, 1))
    kept_rows = odd & usual.experts_run[:, 1]
    assert torch.equal(again.logits[kept_rows], usual.logits[kept_rows])
    assert torch.equal(again.gmacs[kept_rows], usual.gmacs[kept_rows])


def test_the_search_keeps_the_entropies_of_its_points():
    search, report = make_predictions(600, seed=0), make_predictions(400, seed=1)
    args = SearchArguments(recipe="cascade", baselines=False, front_size=4)
    found = search_front("abc", search, report, args, make_accelerator("cpu"))
    for point in found.evaluation.front:
        assert OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict()))) == point
        assert point.entropies.images == 600
        routing = route(
            point, found.heads[point.name], report.outputs, 400, report.costs, unlike=UnlikeRule("ignore", 0.01, 2)
        )
        assert (routing.p_values <= 0.1).double().mean() <= 0.1 + 3 * (0.09 / 400) ** 0.5


def test_no_answer_is_given_where_that_is_asked_and_promises_are_not_undone():
    search, report = make_predictions(600, seed=0), make_predictions(400, seed=1)
    args = SearchArguments(recipe="cascade", baselines=False, front_size=4)
    found = search_front("abc", search, report, args, make_accelerator("cpu"))
    point = found.evaluation.front[0]

    def answer(action: str, threshold: float | None = None):
        rule = UnlikeRule(action, 0.1, 2)
        heads = found.heads[point.name]
        return route(point, heads, report.outputs, 400, report.costs, threshold=threshold, unlike=rule)

    ignored, silent, diverted = map(answer, ("ignore", "abstain", "reference"))
    odd = ignored.p_values <= 0.1
    assert odd.any()
    assert not ignored.abstained.any()
    assert torch.equal(silent.abstained, odd)
    assert torch.equal(silent.logits, ignored.logits)
    assert torch.equal(silent.gmacs, ignored.gmacs)
    assert torch.equal(diverted.confidence.isnan(), odd & ~ignored.experts_run[:, 2]), (
        "nothing is known of its answers"
    )
    assert not ignored.confidence.isnan().any()
    withheld = answer("ignore", 1.0).abstained
    assert torch.equal(answer("abstain", 1.0).abstained, withheld | (answer("ignore", 1.0).p_values <= 0.1))
    with pytest.raises(PertinenceError, match="ood_action='reference' replaces answers after their error rate was"):
        answer("reference", 1.0)
