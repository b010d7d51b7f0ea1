"""The policy on tensors: evidence, choice, thresholds, and the one sweep that sends every image where it belongs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from by_hand import evidence_by_hand

from pertinence import Front, OperatingPoint, PertinenceError, Stage
from pertinence.routing.costs import PoolCosts
from pertinence.routing.dispatcher import Dispatcher
from pertinence.routing.evidence import EVIDENCE, MIX, Known, compute_evidence, observe
from pertinence.routing.heads import Head, threshold_head
from pertinence.routing.mixing import log_softmax, mix, summary
from pertinence.routing.policy import Routing, route
from pertinence.routing.sweep import allowed_actions, choose


NUM_EXPERTS = 5
GMACS = [1.0, 2.0, 4.0, 8.0, 16.0]
KNOTS = torch.linspace(-2, 5, 8)
HEAD_GMACS = NUM_EXPERTS * NUM_EXPERTS / 1e9


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


class Answers:
    """What every expert says about every image, known beforehand, as a search knows it.

    Attributes:
        logits: (N, B, C).
        features: (N, B, F).
        asked: the rows that each expert was run on.
    """

    def __init__(self, logits: torch.Tensor, features: torch.Tensor | None = None):
        self.logits, self.features = logits, features
        self.asked: dict[int, list[int]] = {}

    def run(self, expert: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert expert not in self.asked, f"expert {expert} was run twice"
        self.asked[expert] = rows.tolist()
        return self.logits[expert][rows], None if self.features is None else self.features[expert][rows]

    def route(self, point: OperatingPoint, heads: Sequence[Head]) -> Routing:
        return route(point, heads, self.run, self.logits.shape[1], PoolCosts.in_gmacs(GMACS[: len(self.logits)]))


# Evidence


@pytest.mark.parametrize("num_labels", [2, 3, 5, 10, 50])
@pytest.mark.parametrize(
    ("scale", "decimals"), [(1.0, 0), (2.0, 9), (100.0, 9)], ids=["with-ties", "doubtful", "certain"]
)
def test_evidence_of_a_mixture_is_what_it_says(num_labels, scale, decimals):
    count = 64
    rng = np.random.default_rng(num_labels)
    mixed = np.round(rng.normal(size=(count, num_labels)) * scale, decimals)
    ran = rng.random((count, NUM_EXPERTS)) < 0.5
    ran[:, 1] |= ~ran.any(1)
    votes = rng.integers(0, 2, (count, NUM_EXPERTS)) * mixed.argmax(1, keepdims=True)
    actual = compute_evidence(MIX, torch.tensor(mixed), torch.tensor(votes), torch.tensor(ran), KNOTS.double())
    expected = [evidence_by_hand(*image, KNOTS.numpy()) for image in zip(mixed, votes, ran, strict=True)]
    np.testing.assert_allclose(actual.numpy(), np.array(expected, dtype=float), atol=1e-9)


def test_evidence_stays_finite_however_certain_the_answer():
    mixed = torch.tensor([[3e4, 0.0, -3e4], [0.0, 0.0, 0.0]])
    votes, ran = torch.zeros(2, NUM_EXPERTS, dtype=torch.int64), torch.ones(2, NUM_EXPERTS, dtype=torch.bool)
    assert torch.isfinite(compute_evidence(MIX, mixed, votes, ran, KNOTS)).all()


@pytest.mark.parametrize(("kind", "order"), [("features", "f"), ("mix", "m"), ("both", "fm")])
def test_evidence_of_a_stage_is_features_then_mixture(kind, order):
    mixed, votes, features = random(6, 10), random(6, NUM_EXPERTS).long(), random(6, 7, seed=1)
    ran = torch.ones(6, NUM_EXPERTS, dtype=torch.bool)
    parts = {"f": features, "m": compute_evidence(MIX, mixed, votes, ran, KNOTS)}
    evidence = EVIDENCE.get(kind)
    label, seen = observe(evidence.reads, *(values.numpy() for values in (mixed, mixed, features)))
    assert label.tolist() == mixed.argmax(1).tolist()
    actual = evidence.compute(Known(votes.numpy(), **seen), KNOTS.numpy())
    torch.testing.assert_close(torch.from_numpy(actual), torch.cat([parts[part] for part in order], 1))


def test_knots_are_low_quantiles_of_the_logit_of_the_largest_probability():
    logits = random(500, 10)
    probability = logits.double().softmax(-1).amax(-1)
    quantiles = np.quantile((probability / (1 - probability)).log(), [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7])
    np.testing.assert_allclose(MIX.fit(logits).numpy(), quantiles, atol=1e-4)


def test_a_mixture_is_the_weighted_sum_of_log_probabilities():
    log_probs, weights = random(4, 3, 10).log_softmax(-1), [0.5, 0.0, 2.0]
    torch.testing.assert_close(mix(log_probs.unbind(1), weights), 0.5 * log_probs[:, 0] + 2.0 * log_probs[:, 2])


@pytest.mark.parametrize("tail", [1, 7])
@pytest.mark.parametrize("num_labels", [2, 5, 10])
@pytest.mark.parametrize("function", [log_softmax, summary], ids=["log_softmax", "summary"])
def test_arrays_and_tensors_say_the_same(function, num_labels, tail):
    """Answers are tensors on an accelerator and arrays on the host."""
    logits = random(32, num_labels, scale=5.0)
    logits[:, -1] -= 5
    torch.testing.assert_close(torch.from_numpy(function(logits.numpy(), tail)), function(logits, tail))
    elsewhere = function(logits.to("meta"), tail)  # where a tensor on the CPU is not to be mixed in
    assert (elsewhere.device.type, elsewhere.dtype) == ("meta", torch.float32)
    if function is log_softmax:
        whole = torch.cat([logits, logits[:, -1:].expand(-1, tail - 1)], 1).log_softmax(1)
        torch.testing.assert_close(function(logits, tail), whole[:, :num_labels])


# Choice


@pytest.mark.parametrize(
    ("scores", "allowed", "action"),
    [
        ([1.0, 3.0, 2.0], [True, True, True], 1),
        ([1.0, 3.0, 2.0], [True, False, True], 2),
        ([-3.0, 9.0, -2.0], [True, False, True], 2),
        ([-1.0, float("inf"), -2.0], [True, False, True], 0),
        ([-1.0, float("nan"), -2.0], [True, False, True], 0),
        ([-9.0, 0.0, 0.0], [True, False, False], 0),
        ([7.0, 7.0, 7.0], [True, True, True], 0),
        ([7.0, 7.0, 7.0], [False, True, True], 1),
        ([0.0, 7.0, 7.0], [True, True, True], 1),
    ],
    ids=str,
)
def test_the_largest_allowed_score_wins_and_of_equals_the_cheapest(scores, allowed, action):
    assert choose(np.array([scores]), np.array(allowed)).tolist() == [action]


def test_a_population_chooses_as_each_of_its_members_does():
    scores, allowed = random(3, 7, NUM_EXPERTS).numpy(), np.array([False, True, True, False, True])
    together = choose(scores, allowed)
    assert together.shape == (3, 7)
    assert together.tolist() == [choose(one, allowed).tolist() for one in scores]


@pytest.mark.parametrize(("after", "actions"), [(0, [0, 2, 4]), (2, [2, 4]), (4, [4])])
def test_allowed_are_to_answer_and_the_members_later_in_the_pool(after, actions):
    point = OperatingPoint("point", "cascade", (0, 2, 4), (Stage(0),))
    assert allowed_actions(point, Stage(after), NUM_EXPERTS).nonzero()[0].tolist() == actions


def test_a_head_is_a_linear_map_for_one_or_for_a_whole_population():
    evidence, weight, bias = random(6, 9), random(3, NUM_EXPERTS, 9, seed=1), random(3, NUM_EXPERTS, seed=2)
    population = Head(weight, bias).scores(evidence.numpy())
    for one in range(3):
        alone = Head(weight[one], bias[one]).scores(evidence.numpy())
        np.testing.assert_allclose(alone, population[one], atol=1e-5)
        np.testing.assert_allclose(alone, evidence @ weight[one].T + bias[one], atol=1e-5)


# Thresholds


def confidence_cascade(answers: torch.Tensor, members: Sequence[int], thresholds: Sequence[float]) -> list[int]:
    """Where each image ends that goes on as long as the largest probability is below the threshold."""
    ends = []
    for image in range(answers.shape[1]):
        for member, threshold in zip(members, [*thresholds, 0.0], strict=True):
            if answers[member, image].softmax(-1).max() >= threshold:
                ends.append(member)
                break
    return ends


@pytest.mark.parametrize("members", [(0, 1), (0, 2, 4), (1, 2, 3), (0, 1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("thresholds", [[0.0] * 4, [0.4, 0.7, 0.5, 0.6], [1.0] * 4], ids=["never", "some", "always"])
def test_threshold_heads_are_a_confidence_cascade(members, thresholds):
    thresholds = thresholds[: len(members) - 1]
    stages = tuple(Stage(member) for member in members[:-1])
    point = OperatingPoint("cascade", "thresholds", members, stages)
    heads = [threshold_head(point, s, t, NUM_EXPERTS) for s, t in zip(stages, thresholds, strict=True)]
    answers = random(NUM_EXPERTS, 200, 10)
    routing = Answers(answers).route(point, heads)
    ends = confidence_cascade(answers, members, thresholds)
    assert routing.expert_indices.tolist() == ends
    assert torch.equal(routing.logits, answers[ends, range(200)])
    assert set(ends) == {0.0: {members[0]}, 0.4: set(members), 1.0: {members[-1]}}[thresholds[0]]


def test_confidence_at_the_threshold_is_enough():
    point = OperatingPoint("cascade", "thresholds", (0, 1), (Stage(0),))
    answers = torch.tensor([200.0, 0.0, 0.0, 0.0]).expand(2, 1, -1)
    expected = {1.0: 0, 1.0000002: 1}
    for threshold, end in expected.items():
        routing = Answers(answers).route(point, [threshold_head(point, point.stages[0], threshold, 2)])
        assert routing.expert_indices.tolist() == [end]


# The sweep: heads that read the next action off the features let a test say where each image goes


PATHS = [(0, 4), (0,), (0, 2, 4), (0, 2), (0,), (0, 2, 4), (0, 4)]
CASCADE = OperatingPoint(
    "cascade",
    "cascade",
    (0, 2, 4),
    (Stage(0, "features", (1.5,)), Stage(2, "features", (0.5, 1.0)), Stage(4, "features", (0.2, 0.3, 0.9))),
)
PAPER = OperatingPoint("paper", "paper", (0, 1, 3), (Stage(0, "features"),))
OBEDIENT = Head(torch.eye(NUM_EXPERTS), torch.zeros(NUM_EXPERTS))
"""Its scores are the features themselves."""


def answers_for(paths: Sequence[Sequence[int]], seed: int = 0) -> Answers:
    """Random answers, with features that send image i along `paths[i]` where heads are obedient."""
    features = torch.zeros(NUM_EXPERTS, len(paths), NUM_EXPERTS)
    for image, path in enumerate(paths):
        for expert, action in zip(path, [*path[1:], path[-1]], strict=True):
            features[expert, image, action] = 1.0
    return Answers(random(NUM_EXPERTS, len(paths), 10, seed=seed), features)


@pytest.fixture
def answers() -> Answers:
    return answers_for(PATHS)


@pytest.fixture
def routing(answers) -> Routing:
    return answers.route(CASCADE, [OBEDIENT, OBEDIENT])


def test_what_is_moved_is_nothing_that_accelerators_lack(routing):
    """Some have no float64; costs, of which sums are taken, are kept in it."""
    moved = vars(routing.to(torch.device("meta")))
    assert moved.pop("costs")["gmacs"].device.type == "cpu"
    moved = {name: values for name, values in moved.items() if values is not None}  # of a point without certainty
    assert {values.device.type for values in moved.values()} == {"meta"}
    assert torch.float64 not in {values.dtype for values in moved.values()}


def test_every_image_takes_its_path(routing):
    assert routing.expert_indices.tolist() == [path[-1] for path in PATHS]
    assert [tuple(ran.nonzero().squeeze(1).tolist()) for ran in routing.experts_run] == PATHS


def test_every_expert_runs_once_on_the_images_that_reach_it_and_no_other(routing, answers):
    reached = {expert: [image for image, path in enumerate(PATHS) if expert in path] for expert in (0, 2, 4)}
    assert answers.asked == reached


def test_an_expert_that_no_image_reaches_does_not_run():
    answers = answers_for([(0,), (0, 4)])
    answers.route(CASCADE, [OBEDIENT, OBEDIENT])
    assert answers.asked == {0: [0, 1], 4: [1]}


def test_the_cost_of_an_image_counts_each_expert_once_and_the_heads_of_the_stages_it_reached(routing):
    decisions = [sum(expert in (0, 2) for expert in path) for path in PATHS]
    expected = [
        sum(GMACS[expert] for expert in path) + reached * HEAD_GMACS
        for path, reached in zip(PATHS, decisions, strict=True)
    ]
    assert routing.gmacs.tolist() == pytest.approx(expected, rel=1e-14)


def test_the_answer_mixes_what_was_run_with_the_weights_of_the_last_stage(routing, answers):
    weights = {stage.after: dict(zip(CASCADE.members, stage.mixing, strict=False)) for stage in CASCADE.stages}
    log_probs = answers.logits.log_softmax(-1)
    expected = [
        sum(weights[path[-1]][expert] * log_probs[expert, image] for expert in path)
        for image, path in enumerate(PATHS)
    ]
    torch.testing.assert_close(routing.logits, torch.stack(expected))


def test_scores_of_actions_are_nan_where_a_stage_was_not_reached_or_an_action_is_not_allowed(routing, answers):
    expected = torch.full((len(PATHS), 2, NUM_EXPERTS), torch.nan)
    for image, path in enumerate(PATHS):
        expected[image, 0, [0, 2, 4]] = answers.features[0, image, [0, 2, 4]]
        if 2 in path:
            expected[image, 1, [2, 4]] = answers.features[2, image, [2, 4]]
    torch.testing.assert_close(routing.scores, expected, equal_nan=True)


def test_no_image_goes_back_or_to_an_expert_that_is_no_member():
    answers = answers_for([(0,), (0,), (0, 4), (0, 2)])
    answers.features[0, :2, [1, 3]] = 9.0
    answers.features[2, 3, 0] = 9.0
    routing = answers.route(CASCADE, [OBEDIENT, OBEDIENT])
    assert routing.expert_indices.tolist() == [0, 0, 4, 2]


def test_the_order_of_the_images_does_not_matter(routing, answers):
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    shuffled = Answers(answers.logits[:, order], answers.features[:, order]).route(CASCADE, [OBEDIENT, OBEDIENT])
    for field in ("logits", "expert_indices", "experts_run", "gmacs", "scores"):
        torch.testing.assert_close(getattr(shuffled, field), getattr(routing, field)[order], equal_nan=True)


def test_in_paper_one_expert_answers_alone_with_its_own_logits():
    paths = [(0, 3), (0,), (0, 1), (0, 3)]
    answers = answers_for(paths)
    routing = answers.route(PAPER, [OBEDIENT])
    assert routing.expert_indices.tolist() == [3, 0, 1, 3]
    assert torch.equal(routing.logits, answers.logits[[3, 0, 1, 3], range(4)])
    assert routing.scores.shape == (4, 1, NUM_EXPERTS)


def test_a_single_expert_answers_everything_and_decides_nothing(answers):
    routing = answers.route(OperatingPoint("static", "static", (3,)), [])
    assert torch.equal(routing.logits, answers.logits[3])
    assert routing.gmacs.tolist() == [GMACS[3]] * len(PATHS)
    assert routing.scores.shape == (len(PATHS), 0, NUM_EXPERTS)


def test_what_the_first_member_does_not_run_for_runs_later():
    """The first member need not be the first of the pool."""
    paths = [(1, 3), (1,), (1, 3)]
    point = OperatingPoint("late", "cascade", (1, 3), (Stage(1, "features"),))
    routing = answers_for(paths).route(point, [OBEDIENT])
    assert routing.expert_indices.tolist() == [3, 1, 3]
    assert not routing.experts_run[:, [0, 2, 4]].any()


# The heads of a front


def point(name: str, members: Sequence[int], *stages: Stage) -> OperatingPoint:
    return OperatingPoint(name, "cascade", tuple(members), stages)


FRONT = Front(
    [
        point("single", [1]),
        point("short", [0, 1], Stage(0)),
        point("features", [0, 2], Stage(0, "features")),
        point("long", [0, 1, 2], Stage(0), Stage(1, "both"), Stage(2, "mix", (1.0, 1.0, 1.0))),
    ],
    ["small", "medium", "large"],
)


def random_heads(dispatcher: Dispatcher, front: Front) -> dict[str, list[Head]]:
    shapes = {p.name: [head.weight.shape for head in dispatcher.heads(p)] for p in front}
    return {
        p.name: [
            Head(random(*shape, seed=seed), random(shape[0], seed=seed), random(8, seed=seed))
            for seed, shape in enumerate(shapes[p.name], 10 * index)
        ]
        for index, p in enumerate(front)
    }


def test_every_point_gets_its_own_heads_back():
    dispatcher = Dispatcher(FRONT, 3, {0: 6, 1: 7, 2: 8})
    heads = random_heads(dispatcher, FRONT)
    for p in FRONT:
        dispatcher.set_heads(p, heads[p.name])
    for p in FRONT:
        stored = dispatcher.heads(p)
        assert len(stored) == len(p.decisions)
        for stage, actual, expected in zip(p.decisions, stored, heads[p.name], strict=True):
            assert torch.equal(actual.weight, expected.weight)
            assert torch.equal(actual.bias, expected.bias)
            assert (
                actual.statistics is None
                if stage.evidence == "features"
                else torch.equal(actual.statistics, expected.statistics)
            )


def test_heads_are_as_wide_as_their_evidence():
    mixture = compute_evidence(MIX, random(1, 10), torch.zeros(1, 3).long(), torch.ones(1, 3).bool(), KNOTS).shape[1]
    dispatcher = Dispatcher(FRONT, 3, {0: 6, 1: 7, 2: 8})
    widths = {p.name: [head.weight.shape[-1] for head in dispatcher.heads(p)] for p in FRONT}
    assert widths == {"single": [], "short": [mixture], "features": [6], "long": [mixture, 7 + mixture]}


def test_a_front_without_decisions_still_has_weights_to_save():
    dispatcher = Dispatcher(Front([point("single", [0])], ["small"]), 1, {0: 6})
    assert dispatcher.state_dict()


def test_a_head_of_another_shape_is_refused():
    dispatcher = Dispatcher(FRONT, 3, {0: 6, 1: 7, 2: 8})
    with pytest.raises(PertinenceError, match=r"'features': a head has shape \(3, 5\), its stage takes \(3, 6\)"):
        dispatcher.set_heads(FRONT.find("features"), [Head(torch.zeros(3, 5), torch.zeros(3))])
