"""What becomes of images on cached predictions, against loops over images."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pertinence import Figures, OperatingPoint, PertinenceError, Stage
from pertinence.evaluation.outcomes import (
    Outcome,
    check_better_than_chance,
    evaluate_experts,
    evaluate_oracle,
    evaluate_point,
    leak_warnings,
    reference_warnings,
    routing_auroc,
)
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.routing.evidence import MIX
from pertinence.routing.front import STEM
from pertinence.routing.heads import Head, threshold_head
from pertinence.routing.policy import route


GMACS = (1.0, 3.0, 10.0)
MILLISECONDS = (0.5, 0.7, 4.0)
CHAIN = OperatingPoint("chain", "thresholds", (0, 2), (Stage(0),))
CHAIN_HEAD = threshold_head(CHAIN, CHAIN.stages[0], 0.8, 3)


@pytest.fixture
def predictions() -> Predictions:
    """Three experts of rising skill on 500 images of four labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (500,), generator=generator)
    target = torch.nn.functional.one_hot(labels, 4)
    experts = [
        ExpertPredictions.keep(skill * target + torch.randn(500, 4, generator=generator)) for skill in (1.0, 2.0, 3.0)
    ]
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs(GMACS))


def goes_on(predictions: Predictions) -> list[bool]:
    """Whether an image goes through the whole chain."""
    return [row.softmax(0).max().item() < 0.8 for row in predictions.experts[0].scores]


# Points


def test_a_chain_is_a_loop_over_images(predictions):
    measured = evaluate_point(CHAIN, [CHAIN_HEAD], predictions)
    right, cost, last = [], [], []
    for row, further in enumerate(goes_on(predictions)):
        answer = predictions.experts[2 if further else 0].scores[row].argmax()
        right.append((answer == predictions.labels[row]).item())
        cost.append(1.0 + CHAIN_HEAD.size / 1e9 + (10.0 if further else 0.0))
        last.append(2 if further else 0)
    assert measured.correct.tolist() == right
    assert measured.costs.tolist() == pytest.approx(cost, rel=1e-14)
    assert measured.figures.accuracy == np.mean(right)
    assert measured.figures.gmacs == pytest.approx(np.mean(cost))
    assert measured.figures.expert_shares == pytest.approx(np.bincount(last, minlength=3) / 500)
    assert measured.figures.interval[0] < measured.figures.accuracy < measured.figures.interval[1]
    assert measured.figures.samples == 500
    assert measured.figures.latency is None


def test_a_subset_speaks_of_its_rows_only(predictions):
    rows = torch.tensor([3, 1, 400])
    part = predictions.subset(rows)
    assert torch.equal(part.correct(), predictions.correct()[rows])
    assert torch.equal(part.subset(torch.tensor([2])).targets, predictions.labels[400:401])
    whole = evaluate_point(CHAIN, [CHAIN_HEAD], predictions)
    assert torch.equal(evaluate_point(CHAIN, [CHAIN_HEAD], part).costs, whole.costs[rows])


def test_many_images_are_routed_in_parts_as_at_once(predictions, monkeypatch):
    expected = evaluate_point(CHAIN, [CHAIN_HEAD], predictions)
    monkeypatch.setattr("pertinence.evaluation.outcomes.ROWS_AT_ONCE", 7)
    found = evaluate_point(CHAIN, [CHAIN_HEAD], predictions)
    assert torch.equal(found.correct, expected.correct)
    assert torch.equal(found.costs, expected.costs)
    assert found.figures == expected.figures


def test_experts_alone(predictions):
    for index, result in enumerate(evaluate_experts(predictions)):
        right = predictions.experts[index].scores.argmax(1) == predictions.labels
        assert torch.equal(result.correct, right)
        assert result.figures.accuracy == pytest.approx(right.double().mean().item())
        assert result.figures.gmacs == GMACS[index]
        assert result.figures.expert_shares == tuple(float(index == other) for other in range(3))


def test_a_point_of_one_expert_is_that_expert(predictions):
    for index, alone in enumerate(evaluate_experts(predictions)):
        point = evaluate_point(OperatingPoint("single", "static", (index,)), (), predictions)
        assert torch.equal(point.correct, alone.correct)
        assert point.figures == alone.figures


def test_the_oracle_takes_the_cheapest_that_is_right(predictions):
    correct = predictions.correct()
    cost = [GMACS[row.index(True)] if any(row) else GMACS[0] for row in correct.tolist()]
    oracle = evaluate_oracle(predictions).figures
    assert oracle.accuracy == pytest.approx(correct.any(1).double().mean().item())
    assert oracle.gmacs == pytest.approx(np.mean(cost))


def test_outcomes_are_compared_on_the_same_images(predictions):
    small, _, large = evaluate_experts(predictions)
    each = small.correct.double() - large.correct.double()
    expected = (each.mean().item(), each.std(correction=0).item() / 500**0.5)
    assert small.versus(large) == pytest.approx(expected)
    assert large.versus(small) == pytest.approx((-expected[0], expected[1]))
    assert large.versus(large) == (0.0, 0.0)


# Latency


def test_latency_is_that_of_every_expert_that_ran(predictions):
    timed = predictions.with_cost("latency", MILLISECONDS)
    measured = evaluate_point(CHAIN, [CHAIN_HEAD], timed)
    each = [0.5 + (4.0 if further else 0.0) for further in goes_on(predictions)]
    assert measured.costs.tolist() == pytest.approx(each)
    assert measured.figures.latency == measured.figures.cost == pytest.approx(np.mean(each))
    untimed = evaluate_point(CHAIN, [CHAIN_HEAD], predictions)
    assert measured.figures.gmacs == untimed.figures.gmacs
    assert torch.equal(measured.correct, untimed.correct)


def test_latency_of_experts_and_of_the_oracle(predictions):
    timed = predictions.with_cost("latency", MILLISECONDS)
    assert [result.figures.cost for result in evaluate_experts(timed)] == pytest.approx(MILLISECONDS)
    assert [result.figures.gmacs for result in evaluate_experts(timed)] == pytest.approx(GMACS)
    first = [row.index(True) if any(row) else 0 for row in predictions.correct().tolist()]
    oracle = evaluate_oracle(timed).figures
    assert oracle.latency == pytest.approx(np.take(MILLISECONDS, first).mean())
    assert oracle.gmacs == pytest.approx(np.take(GMACS, first).mean())


def with_stem(predictions: Predictions) -> tuple[Predictions, OperatingPoint, Head, torch.Tensor]:
    """A stem whose features are the scores of the actions; also where images then go."""
    features = torch.randn(500, 3, generator=torch.Generator().manual_seed(5))
    stem = ExpertPredictions(torch.zeros(500, 1), None, None, features, 4)
    point = OperatingPoint("paper", "paper", (0, 1, 2), (Stage(STEM, "features"),))
    costs = PoolCosts({"gmacs": GMACS}, {"gmacs": 0.25})
    both = Predictions(predictions.experts, predictions.labels, costs, predictions.rows, stem=stem)
    return both, point, Head(torch.eye(3), torch.zeros(3)), features.argmax(1)


def test_a_stem_costs_its_own_beside_the_one_expert_that_runs(predictions):
    both, point, head, choice = with_stem(predictions)
    measured = evaluate_point(point, [head], both)
    assert measured.figures.gmacs == pytest.approx(0.25 + head.size / 1e9 + np.take(GMACS, choice).mean())
    assert torch.equal(measured.correct, predictions.correct().gather(1, choice.unsqueeze(1)).squeeze(1))
    assert measured.figures.expert_shares == pytest.approx((torch.bincount(choice) / 500).tolist())
    timed = evaluate_point(point, [head], both.with_cost("latency", (*MILLISECONDS, 0.1)))
    assert timed.figures.latency == pytest.approx(0.1 + np.take(MILLISECONDS, choice).mean())


def test_a_stem_that_decides_nothing_costs_nothing(predictions):
    both = with_stem(predictions)[0].with_cost("latency", (*MILLISECONDS, 0.1))
    measured = evaluate_point(CHAIN, [CHAIN_HEAD], both).figures
    alone = evaluate_point(CHAIN, [CHAIN_HEAD], predictions.with_cost("latency", MILLISECONDS)).figures
    assert measured == alone


# Agreement


def test_agreement_is_with_the_largest_expert_whatever_the_labels(predictions):
    agreeing = predictions.agreeing()
    answers = torch.stack([expert.scores.argmax(1) for expert in predictions.experts], 1)
    figures = [result.figures for result in evaluate_experts(agreeing)]
    same = (answers == answers[:, 2:]).double().mean(0).tolist()
    assert [one.accuracy for one in figures] == pytest.approx(same)
    assert figures[2].accuracy == 1.0
    further = torch.tensor(goes_on(predictions))
    measured = evaluate_point(CHAIN, [CHAIN_HEAD], agreeing)
    assert measured.figures.accuracy == pytest.approx(
        torch.where(further, True, answers[:, 0] == answers[:, 2]).double().mean().item()
    )
    for one in (*figures, measured.figures, evaluate_oracle(agreeing).figures):
        assert one.measure == "agreement"
        assert "accuracy" not in one.to_dict()


# Many labels


@pytest.fixture(scope="module")
def many_labels() -> tuple[Predictions, Predictions]:
    """Three experts that err alike, on 600 images of 300 labels: with all their scores, and cut to the largest."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 300, (600,), generator=generator)
    target = torch.nn.functional.one_hot(labels, 300)
    common, *own = torch.randn(4, 600, 300, generator=generator)
    logits = [5 * (s * target + 0.8 * common + 0.6 * noise) for s, noise in zip((2.0, 2.7, 3.5), own, strict=True)]
    dense = Predictions.of_pool(
        [ExpertPredictions(each, None, None, None, 300) for each in logits], labels, PoolCosts.in_gmacs(GMACS)
    )
    cut = Predictions.of_pool([ExpertPredictions.keep(each) for each in logits], labels, dense.costs)
    assert dense.candidates is None
    assert cut.candidates.shape[1] < 300
    return dense, cut


def test_cut_scores_leave_every_expert_as_it_is(many_labels):
    dense, cut = many_labels
    nobody_thinks_likely = cut.target_columns == cut.candidates.shape[1]
    assert nobody_thinks_likely.any()
    for index in range(3):
        single = OperatingPoint("single", "static", (index,))
        expected, found = evaluate_point(single, (), dense), evaluate_point(single, (), cut)
        assert torch.equal(found.correct, expected.correct)
        assert found.figures == expected.figures
        assert not found.correct[nobody_thinks_likely].any()


@pytest.mark.parametrize("mixes", [False, True])
def test_decisions_on_cut_scores_are_nearly_those_on_all(many_labels, mixes):
    weights = ((1.0,), (0.4, 0.8), (0.2, 0.5, 0.9)) if mixes else (None,) * 3
    stages = tuple(Stage(index, "mix", each) for index, each in enumerate(weights))
    point = OperatingPoint("chain", "thresholds", (0, 1, 2), stages)
    heads = [threshold_head(point, stage, 0.8, 3) for stage in point.decisions]
    expected, found = (evaluate_point(point, heads, each) for each in many_labels)
    assert min(expected.figures.expert_shares) > 0.1
    assert (found.correct == expected.correct).double().mean() > 0.98
    assert found.figures.accuracy == pytest.approx(expected.figures.accuracy, abs=0.01)
    assert found.figures.gmacs == pytest.approx(expected.figures.gmacs, rel=0.01)


def test_mixtures_of_cut_scores_are_marked_approximate(many_labels):
    dense, cut = many_labels
    point = OperatingPoint("mix", "cascade", (0, 2), (Stage(0, "mix", (1.0,)), Stage(2, "mix", (0.6, 0.7))))
    head = threshold_head(point, point.stages[0], 0.9, 3)
    assert evaluate_point(point, [head], cut).figures.approximate
    assert not evaluate_point(point, [head], dense).figures.approximate
    assert not any(result.figures.approximate for result in evaluate_experts(cut))


# Whether decisions know


def random_heads(count: int) -> list[Head]:
    generator = torch.Generator().manual_seed(1)
    size = MIX.width(3, 0)
    return [
        Head(torch.randn(3, size, generator=generator) / 9, torch.zeros(3), torch.linspace(-1, 4, 8))
        for _ in range(count)
    ]


def action_scores(point: OperatingPoint, heads: Sequence[Head], predictions: Predictions) -> np.ndarray:
    routing = route(point, heads, predictions.outputs, len(predictions), PoolCosts.in_gmacs(GMACS))
    return routing.scores.double().numpy()


def margins(scores: np.ndarray, expert: int) -> np.ndarray:
    """How far an expert's score is ahead of the best other, of those that are allowed."""
    return scores[:, expert] - np.nanmax(np.delete(scores, expert, 1), 1)


def test_where_all_is_decided_at_once_every_expert_is_judged_where_it_is_the_cheapest(predictions):
    point = OperatingPoint("paper", "paper", (0, 1, 2), (Stage(0),))
    heads = random_heads(1)
    scores, correct = action_scores(point, heads, predictions)[:, 0], predictions.correct().numpy()
    cheapest = np.array([row.index(True) if any(row) else None for row in correct.tolist()])
    expected = {expert: roc_auc_score(cheapest == expert, margins(scores, expert)) for expert in range(3)}
    assert routing_auroc(point, heads, predictions) == pytest.approx(expected, abs=1e-4)


def test_an_expert_that_is_no_member_is_neither_judged_nor_in_the_way(predictions):
    point = OperatingPoint("pair", "paper", (0, 2), (Stage(0),))
    heads = random_heads(1)
    scores, correct = action_scores(point, heads, predictions)[:, 0], predictions.correct().numpy()
    cheapest = {0: correct[:, 0], 2: ~correct[:, 0] & correct[:, 2]}
    expected = {expert: roc_auc_score(cheapest[expert], margins(scores, expert)) for expert in (0, 2)}
    assert routing_auroc(point, heads, predictions) == pytest.approx(expected, abs=1e-4)


def test_in_a_cascade_the_expert_that_has_run_is_judged_on_the_images_that_came(predictions):
    stages = (Stage(0), Stage(1, "mix", (0.4, 0.8)))
    point, heads = OperatingPoint("cascade", "cascade", (0, 1, 2), stages), random_heads(2)
    heads[0].bias[1] = 1.75  # about half of the images go on
    scores, correct = action_scores(point, heads, predictions), predictions.correct().numpy()
    expected = {}
    for decision in (0, 1):
        came = ~np.isnan(scores[:, decision]).all(1)
        expected[decision] = roc_auc_score(correct[came, decision], margins(scores[came, decision], decision))
    assert 50 < came.sum() < 450
    assert routing_auroc(point, heads, predictions) == pytest.approx(expected, abs=1e-4)


def test_good_decisions_know_better_than_random_ones(predictions):
    judged = routing_auroc(CHAIN, [CHAIN_HEAD], predictions)
    assert judged[0] > 0.65


def test_an_expert_that_is_always_right_cannot_be_judged():
    always = of_right(np.array([[True, False], [True, True], [True, False]]))
    point = OperatingPoint("pair", "paper", (0, 1), (Stage(0),))
    assert routing_auroc(point, [threshold_head(point, point.stages[0], 0.5, 2)], always) == {}


def test_a_single_expert_decides_nothing_that_could_be_judged(predictions):
    assert routing_auroc(OperatingPoint("single", "static", (1,)), (), predictions) == {}


# Warnings


def of_right(right: np.ndarray) -> Predictions:
    """Predictions of experts of which is known on which images (n, N) each is right."""
    wrong = torch.from_numpy(~right).long()
    experts = [ExpertPredictions.keep(torch.nn.functional.one_hot(each, 2).float()) for each in wrong.unbind(1)]
    return Predictions.of_pool(
        experts, torch.zeros(len(right), dtype=torch.int64), PoolCosts.in_gmacs(GMACS[: right.shape[1]])
    )


def shares(count: int, *rights: float) -> Predictions:
    """Experts that are right on so large a share of images, independently."""
    rng = np.random.default_rng(0)
    return of_right(np.stack([rng.permutation(count) < round(share * count) for share in rights], 1))


def leaks(names: list[str], search: Predictions, report: Predictions) -> list[str]:
    return leak_warnings(names, search, evaluate_experts(search), evaluate_experts(report))


def test_an_expert_much_better_on_the_search_images_is_named():
    (warning,) = leaks(["small", "large"], shares(1000, 0.7, 0.9), shares(500, 0.7, 0.8))
    assert "'large' is right on 90.00 % of the search images, but on 80.00 % of the report images" in warning
    both = leaks(["small", "large"], shares(1000, 0.8, 0.9), shares(500, 0.7, 0.8))
    assert [re.search("Expert '(.*?)'", warning)[1] for warning in both] == ["small", "large"]


@pytest.mark.parametrize(("count", "fires"), [(50, False), (5000, True)])
def test_a_gap_counts_by_what_chance_would_make(count, fires):
    assert bool(leaks(["a", "b"], shares(count, 0.7, 0.85), shares(count, 0.7, 0.8))) == fires


def test_like_images_and_easier_report_images_are_silent():
    assert leaks(["a", "b"], shares(1000, 0.7, 0.8), shares(500, 0.69, 0.79)) == []
    assert leaks(["a", "b"], shares(1000, 0.7, 0.8), shares(500, 0.95, 0.97)) == []


def test_images_that_the_cheapest_gets_all_right_are_told():
    nearly = shares(1000, 0.97, 0.5)
    (warning,) = leaks(["a", "b"], nearly, nearly)
    solved = nearly.correct()[nearly.correct().any(1)]
    assert f"right on {100 * solved[:, 0].double().mean():.1f} % of the search images that any expert" in warning
    assert leaks(["a", "b"], shares(1000, 0.9, 0.5), shares(1000, 0.9, 0.5)) == []


def test_a_cheapest_that_agrees_with_the_largest_leaks_nothing():
    nearly = shares(1000, 0.97, 1.0)
    assert leaks(["a", "b"], nearly, nearly)
    assert leaks(["a", "b"], nearly.agreeing(), nearly.agreeing()) == []


def test_experts_that_are_never_right_break_nothing():
    assert leaks(["a", "b"], shares(10, 0.0, 0.0), shares(10, 0.0, 0.0)) == []


def figures(accuracy: float, samples: int) -> Figures:
    return Figures(accuracy, (0.0, 1.0), {"gmacs": 1.0}, (1.0, 0.0, 0.0), samples)


def test_an_expert_no_better_than_chance_is_refused_by_its_name():
    with pytest.raises(PertinenceError, match="'b' is right on 26.00 % of 1000 images, no better than chance among 4"):
        check_better_than_chance(["a", "b"], [figures(0.9, 1000), figures(0.26, 1000)], 4)
    assert check_better_than_chance(["a", "b"], [figures(0.9, 100), figures(0.4, 100)], 4) == []


def test_an_expert_that_may_be_weak_is_not_taken_for_one_that_guesses():
    """40 images tell 60 % from a coin flip as little as from 70 %."""
    (warning,) = check_better_than_chance(["a", "b"], [figures(0.9, 40), figures(0.6, 40)], 2)
    assert "'b' is right on 60.00 % of 40 images" in warning
    assert warning.endswith("more images would tell.")


# The reference expert


def outcomes_of(*correct: list[int], costs: tuple[float, ...]) -> list[Outcome]:
    found = []
    for right, cost in zip(correct, costs, strict=True):
        flags = torch.tensor(right, dtype=torch.bool)
        accuracy = flags.double().mean().item()
        figures = Figures(accuracy, (0.0, 1.0), {"gmacs": cost}, (1.0,), len(flags))
        found.append(Outcome(flags, torch.full((len(flags),), cost), figures))
    return found


def test_a_dominated_expensive_expert_is_named():
    outcomes = outcomes_of([1, 0] * 50, [1] * 90 + [0] * 10, [1] * 80 + [0] * 20, costs=(1.0, 2.0, 5.0))
    (warning,) = reference_warnings(["a", "b", "c"], outcomes, 1)
    assert warning.startswith("Losses and savings refer to 'b', the most accurate expert on the search images. 'c' is")
    assert warning.endswith("is dominated: it is 10.00 ± 3.00 points less accurate, and costs more.")


def test_equal_experts_are_said_to_be_equal():
    outcomes = outcomes_of([1, 0] * 50, [1, 0] * 50, costs=(2.0, 2.0))
    (warning,) = reference_warnings(["a", "b"], outcomes, 0)
    assert warning.endswith("'b' is dominated: it is right on the same images, and costs as much.")


def test_a_cheaper_expert_that_is_not_measurably_worse_is_named():
    outcomes = outcomes_of([1] * 97 + [0] * 3, [1] * 95 + [0] * 2 + [1] * 3, costs=(1.0, 5.0))
    (warning,) = reference_warnings(["a", "b"], outcomes, 1)
    assert warning == (
        "'a' costs less than 'b', and is not measurably less accurate on the search images (1.00 ± 2.23 points)."
    )
    assert reference_warnings(["a", "b"], outcomes_of([1, 0] * 50, [1] * 100, costs=(1.0, 5.0)), 1) == []
