"""Cascades fitted backwards and out of fold: against a fit written out image by image, and on real predictions."""

import numpy as np
import pytest
import torch
from graded_pool import make_predictions

from pertinence.data.splits import assign_folds
from pertinence.evaluation.outcomes import evaluate_experts, evaluate_point
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.predictions.tables import PredictionTable
from pertinence.routing.costs import PoolCosts
from pertinence.routing.evidence import CONFIDENCE, compute_evidence
from pertinence.search.recipes.cascade_fit import PRICES, fit_heads
from pertinence.search.recipes.curves import HeldOut, Place
from pertinence.search.recipes.outputs import FoldedOutputs, fit_mixing_weights


GMACS = (1.0, 3.0, 10.0)
FOLDS = 4
WHOLE = (0, 1, 2)


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    return make_predictions()


@pytest.fixture(scope="module")
def outputs(predictions) -> FoldedOutputs:
    return FoldedOutputs(predictions, FOLDS, seed=0)


def fit_by_hand(predictions: Predictions, outputs: FoldedOutputs, members, blend: float, ridge: float, price: float):
    """One cascade at one price, fold after fold with numpy's least squares: out-of-fold accuracy, mean heads."""
    folds = assign_folds(predictions.targets, FOLDS, 0)
    fold_of = np.empty(len(predictions), dtype=int)
    for fold, rows in enumerate(folds):
        fold_of[rows[rows >= 0]] = fold
    labels = predictions.targets.numpy()
    log_probs = [expert.scores.log_softmax(1).numpy().astype(float) for expert in predictions.experts]
    votes = torch.tensor(np.stack([part.argmax(1) for part in log_probs], 1))
    start, last = members[0], len(log_probs) - 1

    def mixed(first: int, until: int) -> np.ndarray:
        weights = outputs.mixing_weights(tuple(range(first, until + 1))).numpy().astype(float)[fold_of]
        return sum(weights[:, [j]] * log_probs[first + j] for j in range(until - first + 1))

    pool = mixed(0, last)
    belief = np.exp(pool - np.logaddexp.reduce(pool, axis=1, keepdims=True))
    answers = [mixed(start, until).argmax(1) for until in range(start, last + 1)]
    utility = [blend * (a == labels) + (1 - blend) * belief[np.arange(len(labels)), a] for a in answers]
    value, ended, heads = utility[-1].copy(), np.full(len(labels), last), []
    for until in reversed(range(start, last)):
        value = value - price * GMACS[until + 1] / GMACS[-1]
        scores = torch.tensor(mixed(start, until))
        ran = torch.zeros(len(labels), 3, dtype=torch.bool)
        ran[:, start : until + 1] = True
        evidence = compute_evidence(CONFIDENCE, scores, votes, ran).numpy()
        std = np.where(evidence.std(0) < 1e-6, np.inf, evidence.std(0))
        evidence = (evidence - evidence.mean(0)) / std
        evidence = np.column_stack([evidence, np.ones(len(labels))])
        penalty = np.sqrt(ridge) * np.eye(evidence.shape[1])
        penalty[-1] = 0
        goes_on = np.empty(len(labels), dtype=bool)
        weights = []
        for fold in range(FOLDS):
            used = fold_of != fold
            x = np.vstack([evidence[used], penalty])
            y = np.concatenate([(value - utility[until - start])[used], np.zeros(len(penalty))])
            weights.append(np.linalg.lstsq(x, y, rcond=None)[0])
            goes_on[~used] = evidence[~used] @ weights[-1] > 0
        value = np.where(goes_on, value, utility[until - start])
        ended = np.where(goes_on, ended, until)
        heads.append(np.mean(weights, 0)[:-1] / std)
    right = np.stack(answers, 1)[np.arange(len(labels)), ended - start] == labels
    return right.mean(), heads[::-1]


@pytest.mark.parametrize("settings", [(WHOLE, 0.3, 100.0), ((1, 2), 0.3, 100.0), (WHOLE, 1.0, 1.0)])
@pytest.mark.parametrize("index", [10, 25, 40])
def test_curve_is_what_ridge_regressions_backwards_and_out_of_fold_give(predictions, outputs, settings, index):
    curve = fit_heads(outputs, *settings)
    accuracy, heads = fit_by_hand(predictions, outputs, *settings, PRICES[curve.fitted[index]])
    # An image or two may lie on the edge of a decision.
    assert curve.accuracy[index] == pytest.approx(accuracy, abs=2.5 / len(predictions))
    for ours, by_hand in zip(curve.weight[:, index].double().numpy(), heads, strict=True):
        assert np.linalg.norm(ours - by_hand) < 0.02 * np.linalg.norm(by_hand)


def classes_alone(predictions: Predictions) -> Predictions:
    """The same answers without their scores, as in many tables: decisions then fall on a handful of cases."""
    scores = [4 * torch.nn.functional.one_hot(expert.top_labels()).float() for expert in predictions.experts]
    return Predictions.of_pool(
        [ExpertPredictions.keep(part) for part in scores], predictions.labels, PoolCosts.in_gmacs(GMACS)
    )


@pytest.mark.parametrize("mixing", [True, False])
@pytest.mark.parametrize("of", [lambda predictions: predictions, classes_alone], ids=["scores", "classes"])
def test_cost_is_that_of_the_very_heads_that_are_saved(predictions, of, mixing):
    predictions = of(predictions)
    curve = fit_heads(FoldedOutputs(predictions, FOLDS, 0, mixing), WHOLE)
    for index in (5, 15, 25, 35):
        measured = evaluate_point(curve.point, curve.heads(index), predictions).figures
        assert measured.gmacs == pytest.approx(curve.costs["gmacs"][index], rel=1e-3)
        assert measured.expert_shares == pytest.approx(curve.shares[index], abs=2.5 / len(predictions))


def test_estimates_that_the_saved_heads_do_not_follow_are_left_out(predictions):
    """Of classes alone whole groups of images change their way at once: heads of folds here, their mean there."""
    predictions = classes_alone(predictions)
    curve = fit_heads(FoldedOutputs(predictions, FOLDS, 0), WHOLE)
    assert 0 < len(curve.fitted) < len(PRICES)
    for index in range(0, len(curve.fitted), 10):
        measured = evaluate_point(curve.point, curve.heads(index), predictions).figures
        assert measured.accuracy == pytest.approx(curve.accuracy[index], abs=0.02)


def test_dear_operations_are_bought_less(outputs):
    curve = fit_heads(outputs, WHOLE)
    assert curve.cost[0] > curve.cost[-1]
    assert (np.diff(curve.cost) <= 0.05 * curve.cost[0]).all()


@pytest.mark.parametrize("reference", [0, 2])
def test_wins_and_losses_are_against_the_reference_expert(predictions, reference):
    curve = fit_heads(FoldedOutputs(predictions, FOLDS, 0, reference=reference), WHOLE)
    alone = evaluate_experts(predictions)[reference].figures.accuracy
    assert (curve.wins - curve.losses) / curve.samples == pytest.approx(curve.accuracy - alone)
    assert curve.shares.sum(1) == pytest.approx(1)


def test_saved_heads_do_on_new_images_what_was_estimated(outputs):
    """The mean of the fold heads, run by the model's own code on images that nothing was fitted to."""
    unseen = make_predictions(4000, seed=1)
    curve = fit_heads(outputs, WHOLE)
    for index in (15, 25, 35):
        point = curve.point
        measured = evaluate_point(point, curve.heads(index), unseen).figures
        assert measured.accuracy == pytest.approx(curve.accuracy[index], abs=0.06)
        assert measured.gmacs == pytest.approx(curve.costs["gmacs"][index], rel=0.1)


def test_estimates_are_out_of_fold():
    """Where labels are drawn by lot nothing can be learned: an estimate in sample would find something."""
    noise = make_predictions(400, num_labels=2, seed=3)
    generator = torch.Generator().manual_seed(4)
    experts = [ExpertPredictions.keep(torch.randn(400, 2, generator=generator)) for _ in GMACS]
    lots = Predictions.of_pool(experts, noise.labels, PoolCosts.in_gmacs(GMACS))
    curve = fit_heads(FoldedOutputs(lots, FOLDS, seed=0), WHOLE, blend=1.0, ridge=1e-3)
    assert curve.accuracy.max() < 0.5 + 3 * (0.25 / 400) ** 0.5


def test_judged_images_alone_are_counted(predictions):
    judged = torch.arange(0, len(predictions), 3)
    curve = fit_heads(FoldedOutputs(predictions, FOLDS, 0, judged=judged), WHOLE)
    assert curve.samples == len(judged)
    everything = fit_heads(FoldedOutputs(predictions, FOLDS, 0), WHOLE)
    shared, ours, theirs = np.intersect1d(curve.fitted, everything.fitted, return_indices=True)
    assert len(shared) > 40
    assert torch.equal(curve.weight[:, ours], everything.weight[:, theirs])
    assert not np.array_equal(curve.accuracy[ours], everything.accuracy[theirs])


def test_without_mixing_the_last_expert_answers_alone(predictions):
    curve = fit_heads(FoldedOutputs(predictions, FOLDS, 0, mixing=False), WHOLE)
    assert all(stage.mixing is None for stage in curve.point.stages)
    accuracy = [outcome.figures.accuracy for outcome in evaluate_experts(predictions)]
    assert curve.accuracy[-1] == pytest.approx(accuracy[0])  # nothing is worth that price
    point = curve.point
    measured = evaluate_point(point, curve.heads(25), predictions)
    assert measured.figures.gmacs == pytest.approx(curve.costs["gmacs"][25], rel=0.1)


def test_one_fit_is_the_same_alone_or_after_others_and_on_any_number_of_threads(predictions, outputs):
    expected = fit_heads(outputs, WHOLE)
    before = torch.get_num_threads()
    for threads in (2, 3, 4, 16):
        try:
            torch.set_num_threads(threads)
            alone = fit_heads(FoldedOutputs(predictions, FOLDS, 0), WHOLE)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(alone.weight, expected.weight)
        assert torch.equal(alone.bias, expected.bias)
        assert np.array_equal(alone.accuracy, expected.accuracy)
        assert np.array_equal(alone.cost, expected.cost)


def test_points_of_several_curves_are_judged_in_their_order(predictions, outputs):
    """A front goes back and forth between curves and single experts."""
    unseen = make_predictions(300, seed=1)
    curves = [fit_heads(outputs, members) for members in (WHOLE, (0, 2), (1, 2))]
    places = [Place(curves[at % 3], 5 * at) if at % 4 else Place(None, at % 3) for at in range(10)]
    judge = HeldOut(unseen)
    right, costs = judge.judge_all(places)
    for column, place in enumerate(places):
        if place.curve is None:
            alone = evaluate_experts(unseen)[place.position]
            expected, cost = alone.correct, alone.figures.cost
        else:
            found, spent = judge.judge(place.curve, [place.position])
            expected, cost = found[:, 0], spent[0]
        assert torch.equal(right[:, column], expected)
        assert costs[column] == pytest.approx(cost)


@pytest.mark.parametrize("mixing", [True, False])
def test_images_that_judge_see_what_the_model_does(predictions, mixing):
    unseen = make_predictions(700, seed=1)
    curve = fit_heads(FoldedOutputs(predictions, FOLDS, 0, mixing), WHOLE)
    indices = [0, 10, 30, 50]
    right, costs = HeldOut(unseen).judge(curve, indices)
    for column, index in enumerate(indices):
        outcome = evaluate_point(curve.point, curve.heads(index), unseen)
        assert (right[:, column] == outcome.correct).float().mean() > 0.995, "one image may lie on an edge"
        assert costs[column] == pytest.approx(outcome.figures.cost, rel=5e-3)


def test_mixing_weights_are_the_most_likely(predictions):
    log_probs = [expert.scores.log_softmax(1) for expert in predictions.experts]
    weights = fit_mixing_weights(log_probs, predictions.targets)

    def loss(w: torch.Tensor) -> float:
        mixed = sum(weight * part for weight, part in zip(w, log_probs, strict=True))
        return (torch.nn.functional.cross_entropy(mixed, predictions.targets) + 1e-3 * w @ w).item()

    best = loss(weights)
    for index in range(3):
        for step in (-0.02, 0.02):
            moved = weights.clone()
            moved[index] += step
            assert loss(moved.clamp(0, 3)) >= best - 1e-6


def test_mixing_weights_stay_within_bounds():
    labels = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(0))
    timid = torch.log_softmax(0.1 * torch.nn.functional.one_hot(labels, 3).float(), 1)
    assert fit_mixing_weights([timid], labels).tolist() == [3.0]
    assert fit_mixing_weights([torch.log_softmax(-timid, 1), timid], labels).tolist() == [0.0, 3.0]
    # Alone an expert keeps its answer, however bad it is.
    assert fit_mixing_weights([torch.log_softmax(-timid, 1)], labels).item() > 0


def test_cut_scores_give_nearly_the_same_curve(zoo, tmp_path):
    """The error that the cut at 20 of 100 labels makes, on CIFAR-100."""
    costs = tmp_path / "costs.json"
    costs.write_text('{"resnet20": 0.041, "resnet32": 0.07, "resnet56": 0.127}')
    dense = PredictionTable.load(zoo / "predictions" / "cifar100-logits.npz", costs, "validation").predictions
    cut_experts = []
    for expert in dense.experts:
        log_probs = expert.scores.log_softmax(1)
        top, labels = log_probs.topk(20)
        rest = log_probs.scatter(1, labels, -torch.inf).logsumexp(1)
        cut_experts.append(ExpertPredictions(top, labels.int(), rest, None, 100))
    cut = Predictions.of_pool(cut_experts, dense.labels, dense.costs)
    curves = [fit_heads(FoldedOutputs(p, 5, 0), WHOLE) for p in (dense, cut)]
    assert np.abs(curves[0].accuracy - curves[1].accuracy).max() < 0.004
    assert np.abs(curves[0].cost / curves[1].cost - 1).max() < 0.02


def test_folds_hold_every_image_once_and_every_label_evenly():
    labels = torch.arange(103) % 7
    folds = assign_folds(labels, 5, seed=0)
    rows = folds[folds >= 0]
    assert sorted(rows.tolist()) == list(range(103))
    for fold in folds:
        counts = torch.bincount(labels[fold[fold >= 0]], minlength=7)
        assert counts.max() - counts.min() <= 1
    assert not torch.equal(folds, assign_folds(labels, 5, seed=1))
