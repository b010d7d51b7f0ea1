"""The monitor: quiet on images like the report images, awake to others, and what its counts are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pertinence import (
    DispatcherSearch,
    Front,
    OperatingPoint,
    PertinenceError,
    PertinenceForImageClassification,
    RoutingMonitor,
    SearchArguments,
    SearchResult,
    Stage,
)
from pertinence.evaluation.monitoring import BETA_PARAMETERS, START_SCALE, conformal_p_values
from pertinence.hub.layout import ROUTING_REFERENCE
from pertinence.routing.confidence import CONFIDENCE_BINS, CONFIDENCE_EDGES, confidence_bins, count_answers
from pertinence.routing.mixing import log_odds
from pertinence.utils.tensors import hash_tensors


FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"
NAMES = ("small", "medium", "large")
POINT = OperatingPoint("cascade", "cascade", (0, 1, 2), (Stage(0), Stage(1)))
PAIR = OperatingPoint("pair", "cascade", (0, 2), (Stage(0),))
MODEL = SimpleNamespace(front=Front([PAIR, POINT], NAMES), config=SimpleNamespace(operating_point="cascade"))
"""Of a model the monitor asks its front and its counts alone; these tests give their own."""
SHARES = (0.7, 0.2, 0.1)
LABELS = 4


def draw(count: int, seed: int, shares: tuple[float, ...] = SHARES, confidence: float = 3.0) -> SimpleNamespace:
    """Answers of images that are alike and independent: who ran last, and how sure it was (mean of logit(p1))."""
    rng = np.random.default_rng(seed)
    experts = rng.choice(3, count, p=shares)
    odds = rng.normal(confidence - experts, 2.0).clip(-0.9)
    logits = np.zeros((count, LABELS))
    logits[:, 0] = odds + math.log(LABELS - 1)
    return SimpleNamespace(logits=torch.from_numpy(logits), expert_indices=torch.from_numpy(experts))


def part(answers: SimpleNamespace, start: int, stop: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(logits=answers.logits[start:stop], expert_indices=answers.expert_indices[start:stop])


def counted(answers: SimpleNamespace) -> torch.Tensor:
    return count_answers(answers.logits, answers.expert_indices, 3)


def make_monitor(reported: int = 1500, seed: int = 0, **options) -> RoutingMonitor:
    return RoutingMonitor(MODEL, reference=counted(draw(reported, 10_000 + seed)), seed=seed, **options)


# What is counted


def test_confidence_is_the_logit_of_the_largest_probability():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    top = logits.softmax(1).max(1).values
    torch.testing.assert_close(log_odds(logits), top.logit())
    widened = torch.cat([logits, logits[:, -1:].expand(-1, 4)], 1)
    wide = widened.softmax(1)[:, :6].max(1).values  # the last column is five labels, none of them the largest
    largest = logits.argmax(1) < 6
    torch.testing.assert_close(log_odds(logits, tail=5)[largest], wide.logit()[largest])


def test_bins_of_confidence_are_half_steps_and_take_everything():
    assert len(CONFIDENCE_EDGES) == CONFIDENCE_BINS - 1
    odds = torch.tensor([-6.0, -2.1, -2.0, -1.6, 0.0, 0.49, 0.5, 12.9, 13.0, 25.0])
    logits = torch.stack([odds, torch.zeros_like(odds)], 1)
    two = torch.where(odds < 0, -odds, odds)  # of two labels the largest is at least a half
    expected = [np.searchsorted(CONFIDENCE_EDGES, value, side="right") for value in two.tolist()]
    assert confidence_bins(logits).tolist() == expected
    many = torch.zeros(1, 1000)
    assert confidence_bins(many).tolist() == [0]


def test_answers_are_counted_by_expert_and_confidence():
    answers = draw(300, 0)
    expected = np.zeros((3, CONFIDENCE_BINS), dtype=int)
    for logits, expert in zip(answers.logits, answers.expert_indices, strict=True):
        odds = logits.softmax(0).max().logit().item()
        expected[expert, sum(edge <= odds for edge in CONFIDENCE_EDGES)] += 1
    assert np.array_equal(counted(answers).numpy(), expected)


# P-values


def test_a_p_value_is_the_rank_among_the_known_and_those_before():
    rng = np.random.default_rng(0)
    known, cells, uniform = rng.integers(0, 4, 12), rng.integers(0, 12, 40), rng.random(40)
    found = conformal_p_values(cells, known, uniform)
    pool = np.repeat(np.arange(12), known).tolist()
    for cell, u, p in zip(cells.tolist(), uniform, found, strict=True):
        stranger, equal = sum(other > cell for other in pool), sum(other == cell for other in pool)
        assert p == pytest.approx((stranger + u * (equal + 1)) / (len(pool) + 1))
        pool.append(cell)


@pytest.mark.parametrize("reported", [5, 200])
def test_p_values_of_exchangeable_images_are_uniform_and_independent(reported):
    """However few are known: over draws of these, too."""
    values = []
    for seed in range(4000):
        rng = np.random.default_rng(seed)
        cells = rng.geometric(0.2, reported + 3).clip(max=15)
        known = np.bincount(cells[:reported], minlength=16)
        values.append(conformal_p_values(cells[reported:], known, rng.random(3)))
    values = np.array(values)
    for column in values.T:
        distance = np.abs(np.sort(column) - (np.arange(4000) + 0.5) / 4000).max()
        assert distance < 1.63 / math.sqrt(4000)  # Kolmogorov and Smirnov, 1 %
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 3.5 / math.sqrt(4000)


# Evidence


def test_evidence_is_what_the_stakes_became():
    """By the sum over bets and starting times, which the monitor has in one recursion."""
    monitor = make_monitor()
    p_values = np.random.default_rng(0).beta(0.7, 1.2, 60)
    evidence = monitor._bet(p_values)
    total = 0.0
    for a in BETA_PARAMETERS:
        for b in BETA_PARAMETERS:
            norm = math.gamma(a + b) / (math.gamma(a) * math.gamma(b))
            density = norm * p_values ** (a - 1) * (1 - p_values) ** (b - 1)
            for start in range(60):
                weight = START_SCALE / ((start + START_SCALE) * (start + 1 + START_SCALE))
                total += weight * density[start:].prod() / len(BETA_PARAMETERS) ** 2
    total += START_SCALE / (60 + START_SCALE)
    assert evidence[-1] == pytest.approx(math.log(total), abs=1e-9)


def test_bets_are_fair():
    """Of uniform p-values the evidence stays 1 on average: the densities and the stakes sum to one."""
    finals, monitor = [], make_monitor()
    for seed in range(8000):
        monitor.reset()
        finals.append(math.exp(monitor._bet(np.random.default_rng(seed).random(12))[-1]))
    assert np.mean(finals) == pytest.approx(1, abs=4 * np.std(finals) / math.sqrt(len(finals)))


# The promise: quiet on images like the report images


@pytest.mark.parametrize(("reported", "rate"), [pytest.param(300, 0.1, marks=pytest.mark.nightly), (1500, 0.05)])
def test_false_alarms_are_no_more_than_stated(reported, rate):
    streams = 500
    alarms = 0
    for seed in range(streams):
        monitor = make_monitor(reported, seed, false_alarm_rate=rate)
        alarms += monitor.update(draw(2500, 50_000 + seed))
    assert alarms / streams <= rate + 2 * math.sqrt(rate * (1 - rate) / streams)
    assert alarms  # the bound is not bought with deafness


# The promise: awake to others

SHIFTS = {
    "later experts": ({"shares": (0.5, 0.3, 0.2)}, 200),
    "less sure": ({"confidence": 1.8}, 230),
    "earlier experts": ({"shares": (0.9, 0.08, 0.02)}, 170),
    "surer": ({"confidence": 4.2}, 150),
    "much harder": ({"shares": (0.2, 0.3, 0.5), "confidence": 0.0}, 20),
    "much easier": ({"shares": (1.0, 0.0, 0.0), "confidence": 9.0}, 10),
}


@pytest.mark.parametrize(("changes", "within"), SHIFTS.values(), ids=SHIFTS)
def test_a_shift_is_noticed_in_time_in_both_directions(changes, within):
    delays = []
    for seed in range(20):
        monitor = make_monitor(seed=seed)
        assert monitor.update(draw(1500, 60_000 + seed, **changes))
        delays.append(monitor.alarmed_after)
    assert np.mean(delays) <= within


def test_a_shift_after_many_quiet_images_is_noticed_not_much_later():
    delays = {}
    for quiet in (0, 5000):
        delays[quiet] = []
        for seed in range(10):
            monitor = make_monitor(seed=seed)
            assert not monitor.update(draw(quiet, 70_000 + seed))
            assert monitor.update(draw(1500, 80_000 + seed, confidence=1.8))
            delays[quiet].append(monitor.alarmed_after - quiet)
    assert np.mean(delays[5000]) <= 2.5 * np.mean(delays[0])


# How it is used


def test_batches_of_any_size_give_the_same():
    answers = draw(1300, 1, confidence=2.2)
    whole = make_monitor()
    whole.update(answers)
    assert whole.alarmed
    for size in (1, 7, 512, 600):
        monitor = make_monitor()
        states = [monitor.update(part(answers, start, start + size)) for start in range(0, 1300, size)]
        assert states == [min((i + 1) * size, 1300) >= whole.alarmed_after for i in range(len(states))]
        assert monitor.alarmed_after == whole.alarmed_after
        assert monitor.log_evidence == pytest.approx(whole.log_evidence, abs=1e-7)
        assert np.array_equal(monitor.shares, whole.shares)


def test_it_shows_what_was_seen_against_what_was_expected():
    reported, answers = draw(1500, 10_000), draw(400, 2, confidence=1.0)
    monitor = make_monitor()
    assert "0 images: no alarm" in repr(monitor)
    monitor.update(answers)
    seen, expected = counted(answers).double().numpy() / 400, counted(reported).double().numpy() / 1500
    np.testing.assert_allclose(monitor.shares, seen.sum(1))
    np.testing.assert_allclose(monitor.histogram, seen.sum(0))
    np.testing.assert_allclose(monitor.expected_shares, expected.sum(1))
    np.testing.assert_allclose(monitor.expected_histogram, expected.sum(0))
    text = repr(monitor)
    assert f"400 images: alarm after {monitor.alarmed_after};" in text
    assert all(f"{100 * share:.1f} %" in text for share in (*monitor.shares, *monitor.expected_shares))


def test_an_alarm_lasts_until_the_reset_and_a_reset_begins_anew():
    monitor, harder = make_monitor(), draw(300, 3, confidence=0.0)
    assert monitor.update(harder)
    after = monitor.alarmed_after
    assert monitor.update(draw(2000, 4))
    assert (monitor.images, monitor.alarmed_after) == (2300, after)
    monitor.reset()
    assert (monitor.images, monitor.alarmed, monitor.log_evidence) == (0, False, 0.0)
    assert not monitor.shares.any()
    monitor.update(harder)
    assert monitor.alarmed_after == after


def test_the_alarm_is_where_the_evidence_passes_the_threshold():
    answers = draw(300, 5, confidence=1.0)
    for rate in (0.1, 0.001):
        monitor = make_monitor(false_alarm_rate=rate)
        for start in range(300):
            before = monitor.log_evidence
            if monitor.update(part(answers, start, start + 1)):
                break
        assert before < -math.log(rate) <= monitor.log_evidence
        assert monitor.alarmed_after == start + 1


@pytest.mark.parametrize("rate", [0, 1, -0.5, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(PertinenceError, match="false_alarm_rate must lie between 0 and 1"):
        make_monitor(false_alarm_rate=rate)


def test_a_reference_of_another_shape_is_refused():
    with pytest.raises(PertinenceError, match=r"shape \(3, 32\), as count_answers gives, got \(2, 32\)"):
        RoutingMonitor(MODEL, reference=torch.ones(2, 32))


def test_answers_of_another_operating_point_are_refused():
    monitor = RoutingMonitor(MODEL, "pair", reference=counted(draw(100, 0)))
    with pytest.raises(PertinenceError, match="'medium' is no member of 'pair'"):
        monitor.update(draw(50, 0))
    assert monitor.images == 0


# Where the counts come from


@pytest.fixture(scope="module")
def result(digits, digit_experts, tmp_path_factory) -> SearchResult:
    args = SearchArguments(
        population=8, generations=2, device="cpu", cache_dir=str(tmp_path_factory.mktemp("cache")), baselines=False
    )
    return DispatcherSearch(digit_experts, digits[1], args, report_dataset=digits[2]).run()


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    result.save(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(saved)


@pytest.fixture(scope="module")
def report_images(digits) -> list[torch.Tensor]:
    arrays = digits[2].with_format("numpy")["image"][:]
    return [torch.from_numpy(image).expand(3, -1, -1) for image in arrays]


def test_a_search_counts_what_the_saved_model_answers_to_the_report_images(model, report_images):
    points = [model.front[0], model.front.find(model.config.operating_point), model.front[-1]]
    assert any(len(point.members) > 1 for point in points)
    for point in points:
        out = model(report_images, operating_point=point.name)
        expected = count_answers(out.logits, out.expert_indices, 3)
        assert torch.equal(model.routing_reference[point.name], expected)
        assert expected.sum() == point.report.samples


def test_the_counts_are_saved_and_come_back(result, saved, model, tmp_path):
    stored = load_file(saved / ROUTING_REFERENCE)["counts"]
    assert torch.equal(stored, counts_of(result.model))
    half = PertinenceForImageClassification.from_pretrained(saved, dtype="bfloat16").to(torch.float16)
    model.save_pretrained(tmp_path)
    again = PertinenceForImageClassification.from_pretrained(tmp_path)
    for other in (half, again):
        assert torch.equal(counts_of(other), stored)
        assert counts_of(other).dtype == torch.int64


def counts_of(model) -> torch.Tensor:
    """Point by point."""
    return torch.stack([model.routing_reference[point.name] for point in model.front])


def test_a_model_without_counts_leaves_none_of_the_one_that_it_is_saved_over(saved, digit_experts, model, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / ROUTING_REFERENCE).is_file()
    PertinenceForImageClassification.from_experts(digit_experts, 0.9).save_pretrained(tmp_path)
    assert not (tmp_path / ROUTING_REFERENCE).exists()
    assert not PertinenceForImageClassification.from_pretrained(tmp_path).routing_reference


def test_counts_among_the_weights_as_they_were_saved_before(tmp_path):
    former = load_file(FORMAT_1 / "model.safetensors")["dispatcher.answers"].double()
    old = PertinenceForImageClassification.from_pretrained(FORMAT_1)
    for point, counts in zip(old.front, former.long(), strict=True):
        assert torch.equal(old.routing_reference.get(point.name, torch.zeros_like(counts)), counts)
    monitor = RoutingMonitor(old)
    row = [point.name for point in old.front].index(old.config.operating_point)
    assert torch.equal(torch.from_numpy(monitor.expected_histogram), former[row].sum(0) / former[row].sum())
    old.save_pretrained(tmp_path, save_experts=True)
    weights = load_file(tmp_path / "model.safetensors")
    assert "dispatcher.answers" not in weights
    again = PertinenceForImageClassification.from_pretrained(tmp_path)
    assert again.routing_reference.keys() == old.routing_reference.keys()
    for name, counts in again.routing_reference.items():
        assert torch.equal(counts, old.routing_reference[name])
    # Versions that look for the counts among the weights load it, too: they hash what the file holds.
    assert json.loads((tmp_path / "config.json").read_text())["heads_hash"] == hash_tensors(weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda counts: counts.float(), "does not fit its front"),
        (lambda counts: counts[:, :2].contiguous(), "does not fit its front"),
        (lambda counts: -counts, "hold impossible numbers"),
        (None, "is damaged"),
    ],
    ids=["dtype", "shape", "negative", "damaged"],
)
def test_a_damaged_reference_is_refused(model, tmp_path, change, words):
    model.save_pretrained(tmp_path)
    path = tmp_path / ROUTING_REFERENCE
    if change is None:
        path.write_bytes(path.read_bytes()[:-100])
    else:
        heads_hash = json.loads((tmp_path / "config.json").read_text())["heads_hash"]
        save_file({"counts": change(load_file(path)["counts"])}, path, metadata={"heads_hash": heads_hash})
    with pytest.raises(PertinenceError, match=words):
        PertinenceForImageClassification.from_pretrained(tmp_path)


def test_the_reference_of_another_model_is_refused(model, tmp_path):
    for name in ("model", "other"):
        model.save_pretrained(tmp_path / name)
    path = tmp_path / "model" / ROUTING_REFERENCE
    save_file(load_file(path), path, metadata={"heads_hash": "0" * 64})
    with pytest.raises(PertinenceError, match=f"{ROUTING_REFERENCE} of .* do not belong together"):
        PertinenceForImageClassification.from_pretrained(tmp_path / "model")


def test_a_monitor_watches_the_saved_model(model, report_images):
    monitor = RoutingMonitor(model)
    assert monitor.operating_point.name == model.config.operating_point
    assert monitor.expert_names == tuple(model.config.expert_names)
    np.testing.assert_allclose(monitor.expected_shares, monitor.operating_point.report.expert_shares, atol=1e-6)
    noise = torch.rand(len(report_images), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert monitor.update(model(noise))
    other = RoutingMonitor(model, "fastest")
    assert other.operating_point.name == "fastest"


def test_a_model_saved_without_counts_loads_and_says_what_to_do(saved, model, report_images, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / ROUTING_REFERENCE).unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    del config["heads_hash"]  # models of that time had none
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = PertinenceForImageClassification.from_pretrained(tmp_path)
    assert not old.routing_reference
    with pytest.raises(PertinenceError, match=r"nothing is known of the answers at .* give reference="):
        RoutingMonitor(old)
    old.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(tensors)
    assert not (tmp_path / "again" / ROUTING_REFERENCE).exists()
    out = old(report_images)
    monitor = RoutingMonitor(old, reference=count_answers(out.logits, out.expert_indices, 3))
    assert not monitor.update(out)


def test_a_cascade_of_thresholds_was_never_measured(digit_experts):
    cascade = PertinenceForImageClassification.from_experts(digit_experts, 0.9)
    with pytest.raises(PertinenceError, match="nothing is known of the answers at operating point 'cascade'"):
        RoutingMonitor(cascade)
