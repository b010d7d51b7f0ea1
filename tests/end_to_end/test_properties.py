"""Policy, costs, front, hull and guarantee against brute force that was written without looking at them, on cases that
hypothesis makes up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import evidence_by_hand
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import multinomial

from pertinence import Figures, Front, OperatingPoint, PertinenceError, Stage
from pertinence.evaluation.calibration import fixed_sequence
from pertinence.evaluation.candidates import Candidate
from pertinence.evaluation.intervals import hull_hypervolume, hypervolume, non_dominated, random_mix_hull
from pertinence.evaluation.noninferiority import noninferiority_p_value
from pertinence.evaluation.outcomes import evaluate_point
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.routing.evidence import EVIDENCE
from pertinence.routing.front import STEM
from pertinence.routing.guarantee import Comparison
from pertinence.routing.heads import Head
from pertinence.routing.policy import Routing, route
from pertinence.search.points import default_point, thin


settings.register_profile("quick", max_examples=60, deadline=None, derandomize=True, database=None)
settings.load_profile("quick")

NUM_FEATURES = 4
CLEAR = 1e-3
"""Actions whose scores are closer than this may be chosen either way: float32 against float64."""


# The policy: one image after the other


@st.composite
def worlds(draw, reads_features: bool = True) -> World:
    """A pool, an operating point of it with random heads, and what the pool says about some images."""
    num_experts = draw(st.integers(1, 5))
    members = tuple(sorted(draw(st.sets(st.integers(0, num_experts - 1), min_size=1))))
    has_stem = reads_features and draw(st.booleans()) and len(members) > 1
    stages = [Stage(STEM, "features")] if has_stem else []
    for position, member in enumerate(members):
        if has_stem and draw(st.booleans()):
            continue  # decided by the stem alone
        if position and not has_stem and draw(st.integers(0, 3)) == 0:
            continue  # answers alone, whatever came before
        is_last = member == members[-1]
        mixing = draw(st.one_of(st.none(), st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])] * (position + 1))))
        if is_last and mixing is None:
            continue
        kinds = ["mix"] if is_last or not reads_features else ["features", "mix", "both"]
        stages.append(Stage(member, draw(st.sampled_from(kinds)), mixing))
    point = OperatingPoint("point", "cascade", members, tuple(stages))
    return World(point, num_experts, draw(st.sampled_from([2, 3, 7, 30])), draw(st.integers(0, 2**32 - 1)))


class World:
    """Everything that a `route` needs, from a seed.

    Attributes:
        logits, features: (N, B, C) and (N, B, F).
        stem: (B, F).
        gmacs: of each expert.
    """

    def __init__(self, point: OperatingPoint, num_experts: int, num_labels: int, seed: int, count: int = 12):
        rng = np.random.default_rng(seed)
        self.point, self.num_labels = point, num_labels
        self.logits = rng.normal(scale=rng.choice([0.5, 3.0]), size=(num_experts, count, num_labels)).astype(
            np.float32
        )
        self.features = rng.normal(size=(num_experts, count, NUM_FEATURES)).astype(np.float32)
        self.stem = rng.normal(size=(count, NUM_FEATURES)).astype(np.float32)
        self.gmacs = np.cumsum(rng.random(num_experts) + 0.1).tolist()
        self.stem_gmacs = 0.05 if any(stage.after == STEM for stage in point.stages) else 0.0
        self.heads = []
        for stage in point.decisions:
            size = EVIDENCE.get(stage.evidence).width(num_experts, NUM_FEATURES)
            weight, bias = rng.normal(size=(num_experts, size)), rng.normal(size=num_experts)
            knots = np.sort(rng.normal(size=8))
            self.heads.append(Head(*(torch.tensor(v, dtype=torch.float32) for v in (weight, bias, knots))))

    def __repr__(self) -> str:
        return f"World({self.point}, {len(self.gmacs)} experts, {self.num_labels} labels)"

    def run(self, expert: int, rows: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        if expert == STEM:
            return None, torch.from_numpy(self.stem)[rows]
        return torch.from_numpy(self.logits[expert])[rows], torch.from_numpy(self.features[expert])[rows]

    @property
    def costs(self) -> PoolCosts:
        return PoolCosts({"gmacs": tuple(self.gmacs)}, {"gmacs": self.stem_gmacs})

    def route(self, tail: int = 1) -> Routing:
        count = len(self.stem)
        return route(self.point, self.heads, self.run, count, self.costs, tail=tail)

    def route_one_by_one(self) -> Routing:
        each = []
        for image in range(len(self.stem)):

            def run(expert: int, rows: torch.Tensor, image: int = image) -> tuple[torch.Tensor | None, torch.Tensor]:
                return self.run(expert, rows + image)

            each.append(route(self.point, self.heads, run, 1, self.costs))
        fields = ("logits", "expert_indices", "experts_run", "gmacs", "scores", "abstained")
        parts = [torch.cat([getattr(routing, name) for routing in each]) for name in fields]
        return Routing(*parts[:3], {"gmacs": parts[3]}, *parts[4:])

    def by_hand(self, image: int) -> tuple[np.ndarray, list[int], float, float]:
        """What becomes of one image: answer (C,), the experts that ran, cost, and how close two actions came."""
        point, heads = self.point, dict(zip((s.after for s in self.point.decisions), self.heads, strict=True))
        stages = {stage.after: stage for stage in point.stages}
        log_probs = self.logits.astype(float)
        log_probs = log_probs - np.logaddexp.reduce(log_probs, axis=2, keepdims=True)
        at = STEM if STEM in stages else point.members[0]
        went: list[int] = []
        cost, margin, answer = 0.0, np.inf, None
        while True:
            if at == STEM:
                cost += self.stem_gmacs
            else:
                went.append(at)
                cost += self.gmacs[at]
                answer = self.logits[at, image].astype(float)
                if at in stages and stages[at].mixing is not None:
                    weights = dict(zip(point.members, stages[at].mixing, strict=False))
                    answer = sum(weights[expert] * log_probs[expert, image] for expert in went)
            if at not in heads:
                return answer, went, cost, margin
            known = []
            if stages[at].evidence != "mix":
                known += (self.stem[image] if at == STEM else self.features[at, image]).tolist()
            if stages[at].evidence != "features":
                ran = np.isin(np.arange(len(self.gmacs)), went)
                votes = self.logits[:, image].argmax(1)
                known += evidence_by_hand(answer, votes, ran, heads[at].statistics.numpy())
            scores = heads[at].weight.numpy().astype(float) @ np.array(known) + heads[at].bias.numpy()
            actions = [member for member in point.members if member >= at]
            ranking = sorted(actions, key=lambda action: -scores[action])
            if len(ranking) > 1:
                margin = min(margin, scores[ranking[0]] - scores[ranking[1]])
            cost += heads[at].weight.numel() / 1e9
            if ranking[0] == at:
                return answer, went, cost, margin
            at = ranking[0]


def check_by_hand(world: World, routing: Routing) -> None:
    for image in range(len(world.stem)):
        answer, went, cost, margin = world.by_hand(image)
        if margin < CLEAR:
            continue
        assert routing.experts_run[image].nonzero().flatten().tolist() == went
        assert routing.expert_indices[image].item() == went[-1]
        assert routing.gmacs[image].item() == pytest.approx(cost, rel=1e-12)
        np.testing.assert_allclose(routing.logits[image].numpy(), answer, atol=1e-4, rtol=1e-5)


@given(worlds())
def test_every_image_takes_the_way_it_takes_by_hand(world):
    check_by_hand(world, world.route())


@given(worlds())
def test_so_it_does_where_answers_are_mixed_on_an_accelerator(world):
    with pytest.MonkeyPatch.context() as patch:  # which is torch, here on the CPU
        patch.setattr("pertinence.routing.policy.is_host", lambda device: False)
        check_by_hand(world, world.route())


@given(worlds())
def test_an_image_alone_takes_the_way_it_takes_among_others(world):
    together, alone = world.route(), world.route_one_by_one()
    check_by_hand(world, alone)
    for name in ("logits", "expert_indices", "experts_run", "gmacs", "scores"):
        assert getattr(alone, name).dtype == getattr(together, name).dtype
    clear = torch.tensor([bool(world.by_hand(image)[3] > CLEAR) for image in range(len(world.stem))])
    torch.testing.assert_close(alone.scores[clear], together.scores[clear], atol=CLEAR, rtol=1e-3, equal_nan=True)


@given(worlds(), st.randoms(use_true_random=False))
def test_permuted_labels_are_answered_permuted(world, random):
    # Where all that was mixed has the weight 0 labels are alike, and the first of them is the answer.
    assume(all(stage.mixing is None or stage.mixing[-1] for stage in world.point.stages))
    order = list(range(world.num_labels))
    random.shuffle(order)
    before = world.route()
    world.logits = world.logits[:, :, order]
    after = world.route()
    clear = torch.tensor([bool(world.by_hand(image)[3] > CLEAR) for image in range(len(world.stem))])
    torch.testing.assert_close(after.logits[clear], before.logits[clear][:, order], atol=1e-4, rtol=1e-5)
    assert torch.equal(after.experts_run[clear], before.experts_run[clear])
    torch.testing.assert_close(after.scores[clear], before.scores[clear], atol=CLEAR, rtol=1e-3, equal_nan=True)


@given(worlds(), st.data())
def test_an_expert_that_is_no_member_changes_nothing(world, data):
    """Wherever in the pool it stands."""
    at = data.draw(st.integers(0, len(world.gmacs)))
    before, world.heads = world.route(), [_with_blank(head, at, len(world.gmacs)) for head in world.heads]

    def shifted(expert: int) -> int:
        return expert + (expert >= at)

    members = tuple(map(shifted, world.point.members))
    stages = tuple(replace(stage, after=shifted(stage.after) if stage.after != STEM else STEM)
                   for stage in world.point.stages)  # fmt: skip
    world.point = OperatingPoint("point", "cascade", members, stages)
    world.logits = np.insert(world.logits, at, 7.0, axis=0)
    world.features = np.insert(world.features, at, 7.0, axis=0)
    world.gmacs.insert(at, 99.0)
    after = world.route()
    kept = [expert for expert in range(len(world.gmacs)) if expert != at]
    assert not after.experts_run[:, at].any()
    assert torch.equal(after.experts_run[:, kept], before.experts_run)
    assert torch.equal(after.logits, before.logits)
    torch.testing.assert_close(after.gmacs, before.gmacs, rtol=0, atol=1e-6)  # heads are a little larger


def _with_blank(head: Head, at: int, num_experts: int) -> Head:
    """The same head for a pool that has one expert more, which it does not look at."""
    weight, size = head.weight, head.weight.shape[1]
    if size > NUM_FEATURES:  # the column of agreement with the new expert
        column = size - 17 - num_experts + at
        weight = torch.cat([weight[:, :column], torch.full((num_experts, 1), 5.0), weight[:, column:]], 1)
    weight = torch.cat([weight[:at], torch.full((1, weight.shape[1]), 9.0), weight[at:]])
    return Head(weight, torch.cat([head.bias[:at], torch.tensor([9.0]), head.bias[at:]]), head.statistics)


@given(worlds(), st.integers(2, 40))
def test_a_column_for_many_labels_is_as_many_equal_columns(world, tail):
    """Where labels are cut, the others stand for as many as they are."""
    world.logits[:, :, -1] -= 6  # unlikely, as those that are cut are
    cut = world.route(tail)
    world.logits = np.concatenate([world.logits, np.repeat(world.logits[:, :, -1:], tail - 1, axis=2)], 2)
    whole = world.route()
    width = cut.logits.shape[1]
    clear = torch.tensor([bool(world.by_hand(image)[3] > CLEAR) for image in range(len(world.stem))])
    if width > 5:  # with fewer the five largest are other ones
        assert torch.equal(cut.experts_run[clear], whole.experts_run[clear])
        torch.testing.assert_close(cut.logits[clear], whole.logits[clear][:, :width], atol=1e-4, rtol=1e-5)


@given(worlds(), st.integers(1, 3))
def test_figures_of_a_point_are_means_of_its_images_however_often_they_occur(world, times):
    assume(world.stem_gmacs == 0)
    labels = torch.from_numpy(world.logits[0].argmax(1))
    experts = [
        ExpertPredictions(torch.from_numpy(own), None, None, torch.from_numpy(seen), world.num_labels)
        for own, seen in zip(world.logits, world.features, strict=True)
    ]
    predictions = Predictions.of_pool(experts, labels, PoolCosts.in_gmacs(world.gmacs))
    hands = [world.by_hand(image) for image in range(len(labels))]
    assume(min(margin for *_, margin in hands) > CLEAR)
    outcome = evaluate_point(world.point, world.heads, predictions.subset(torch.arange(len(labels)).repeat(times)))
    right = [answer.argmax() == label for (answer, *_), label in zip(hands, labels.tolist(), strict=True)]
    assert outcome.figures.accuracy == pytest.approx(np.mean(right))
    assert outcome.figures.gmacs == pytest.approx(np.mean([cost for _, _, cost, _ in hands]), rel=1e-12)
    shares = np.bincount([went[-1] for _, went, _, _ in hands], minlength=len(world.gmacs)) / len(hands)
    assert outcome.figures.expert_shares == pytest.approx(shares, abs=1e-6)
    assert outcome.figures.samples == times * len(labels)


# Fronts, hulls and areas. Few values, so that there are ties.


def few(least: float, most: float) -> st.SearchStrategy[float]:
    return st.integers(0, 8).map(lambda step: least + step * (most - least) / 8)


POINTS = st.lists(st.tuples(few(1, 9), few(0.1, 0.9)), min_size=1, max_size=9)


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points):
    costs, accuracy = zip(*points, strict=True)
    expected = set()
    for i, (cost, height) in enumerate(points):
        is_beaten = any(
            other_cost <= cost and other >= height and ((other_cost, other) != (cost, height) or j < i)
            for j, (other_cost, other) in enumerate(points)
            if j != i
        )
        if not is_beaten:
            expected.add(i)
    found = non_dominated(costs, accuracy)
    assert set(found) == expected
    assert [costs[i] for i in found] == sorted(costs[i] for i in found)


@given(POINTS, few(0.5, 10))
def test_a_random_mix_is_the_best_lottery_that_can_be_paid(points, budget):
    """A linear programme: probabilities of experts, of the largest accuracy, whose mean cost is within the budget."""
    costs, accuracy = map(np.array, zip(*points, strict=True))
    budget_or_cheapest = max(budget, costs.min())
    best = linprog(-accuracy, A_ub=[costs], b_ub=[budget_or_cheapest], A_eq=[np.ones(len(costs))], b_eq=[1.0])
    assert random_mix_hull(costs, accuracy, budget) == pytest.approx(-best.fun, abs=1e-9)


@given(POINTS, few(1, 9), few(0, 0.5))
def test_a_hypervolume_is_the_union_of_rectangles(points, limit, floor):
    costs, accuracy = zip(*points, strict=True)
    edges, heights = sorted({*costs, limit}), sorted({*accuracy, floor})
    area = 0.0
    for (left, right), (low, high) in itertools.product(itertools.pairwise(edges), itertools.pairwise(heights)):
        is_covered = any(cost <= left and height >= high for cost, height in points)
        if right <= limit and low >= floor and is_covered:
            area += (right - left) * (high - low)
    assert hypervolume(costs, accuracy, (limit, floor)) == pytest.approx(area / limit, abs=1e-12)
    assert hull_hypervolume(costs, accuracy, (limit, floor)) >= area / limit - 1e-12


def figures(cost: float, accuracy: float) -> Figures:
    return Figures(accuracy, (0.0, 1.0), {"gmacs": cost}, (1.0,), 100)


@given(POINTS, few(0, 10), st.sampled_from(["gmacs", "accuracy"]))
def test_a_budget_gets_the_best_that_it_buys(points, limit, kind):
    front = Front(
        [OperatingPoint(f"p{i}", "static", (0,), (), figures(*point)) for i, point in enumerate(points)], ["expert"]
    )
    if kind == "gmacs":
        allowed = [(-height, cost) for cost, height in points if cost <= limit]
    else:
        limit /= 10
        allowed = [(cost, -height) for cost, height in points if height >= limit]
    if not allowed:
        with pytest.raises(PertinenceError, match="no operating point"):
            front.choose(**{kind: limit})
        return
    chosen = front.choose(**{kind: limit}).select
    expected = min(allowed)
    assert (chosen.gmacs, chosen.accuracy) == ((expected[1], -expected[0]) if kind == "gmacs" else
                                               (expected[0], -expected[1]))  # fmt: skip


@given(
    st.lists(st.tuples(few(1, 9), few(0.1, 0.9), few(-0.02, 0.02), few(0, 0.08)), min_size=1, max_size=9), few(1, 9)
)
def test_the_default_is_the_cheapest_that_surely_loses_nothing(entries, largest):
    kept = non_dominated(*list(zip(*entries, strict=True))[:2])
    entries = [entries[index] for index in kept]
    candidates = [
        Candidate(OperatingPoint("", "static", (0,), (), figures(cost, height)), (), (difference, error))
        for cost, height, difference, error in entries
    ]
    index, is_lossless = default_point(candidates, largest)
    cheaper = [i for i, (cost, *_) in enumerate(entries) if cost < largest]
    sure = [i for i in cheaper if entries[i][2] > 0 and 2 * entries[i][2] >= entries[i][3]]
    assert is_lossless == bool(sure)
    if sure:
        assert entries[index][0] == min(entries[i][0] for i in sure)
    elif cheaper:
        assert entries[index][1] == max(entries[i][1] for i in cheaper)
    else:
        assert index == 0


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12, unique=True), st.integers(1, 12), st.data())
def test_a_thinned_front_keeps_its_ends_and_its_default(costs, size, data):
    costs.sort()
    needed = data.draw(st.integers(0, len(costs) - 1))
    kept = thin(costs, size, needed)
    assert kept == sorted(set(kept))
    assert {0, len(costs) - 1, needed} <= set(kept)
    assert len(kept) == min(len(costs), max(size, 3)) or len(kept) == len({0, len(costs) - 1, needed})


# The guarantee


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6),
    st.sampled_from([0.02, 0.1, 0.2]),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_points_are_tested_in_order_up_to_the_first_that_fails(outcomes, limit, confidence):
    counts = [(f"p{i}", losses, wins) for i, (losses, wins) in enumerate(outcomes)]
    tested = fixed_sequence(counts, 100, limit, confidence)
    p_values = [noninferiority_p_value(losses, wins, 100, limit) for losses, wins in outcomes]
    failing = next((i for i, p in enumerate(p_values) if p > 1 - confidence), len(outcomes) - 1)
    expected = [Comparison(*count, p) for count, p in zip(counts, p_values, strict=True)]
    assert list(tested) == expected[: failing + 1]


@settings(max_examples=30)
@given(st.integers(5, 14), st.sampled_from([0.05, 0.2, 0.5]), few(0, 1), st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_whatever_the_truth_a_p_value_is_small_as_seldom_as_it_says(count, limit, share, level):
    """Of a point that loses exactly the limit, or more, all outcomes of so many images are summed over."""
    for excess in (0.0, 0.1):
        win = share * max(1 - limit - excess, 0) / 2
        loss = win + limit + excess
        if loss + win > 1:
            continue
        rejected = [
            (losses, wins, count - losses - wins)
            for losses, wins in _outcomes(count)
            if noninferiority_p_value(losses, wins, count, limit) <= level
        ]
        probabilities = [loss, win, max(1 - loss - win, 0.0)]
        assert sum(multinomial.pmf(rejected, count, probabilities)) <= level + 1e-9 if rejected else True


def _outcomes(count: int) -> Sequence[tuple[int, int]]:
    return [(losses, wins) for losses in range(count + 1) for wins in range(count + 1 - losses)]
