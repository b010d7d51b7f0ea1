"""The guarantee: a test that is right too often never, a promise that is kept, on images that nothing has seen."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from safetensors.torch import save_file
from scipy.stats import binom, multinomial

from pertinence import (
    DispatcherSearch,
    Figures,
    Front,
    Guarantee,
    OperatingPoint,
    PertinenceConfig,
    PertinenceError,
    PertinenceForImageClassification,
    evaluate_model,
)
from pertinence.commands.main import main
from pertinence.data.arguments import DataArguments
from pertinence.data.dataset import LabelledImages
from pertinence.data.seen import SEEN, SeenImages
from pertinence.evaluation.calibration import (
    LABELS_RIGHT,
    by_falling_cost,
    calibrate,
    check_unseen,
    fixed_sequence,
    store_guarantee,
)
from pertinence.evaluation.noninferiority import DOUBT, images_needed, noninferiority_p_value
from pertinence.predictions.arguments import RuntimeArguments
from pertinence.routing.guarantee import Comparison
from pertinence.search.arguments import SearchArguments


LEVEL = 0.05


# The test


def all_outcomes(count: int) -> np.ndarray:
    """Every (losses, wins) of so many images."""
    return np.array([(lost, won) for lost in range(count + 1) for won in range(count + 1 - lost)])


def probabilities(outcomes: np.ndarray, count: int, loss: float, win: float) -> np.ndarray:
    rest = count - outcomes.sum(1)
    return multinomial.pmf(np.column_stack([outcomes, rest]), count, [loss, win, max(1 - loss - win, 0.0)])


@pytest.mark.parametrize(("count", "limit"), [(8, 0.3), (30, 0.1), (30, 0.02)])
def test_p_values_are_never_too_small_whatever_the_truth(count, limit):
    outcomes = all_outcomes(count)
    p_values = np.array([noninferiority_p_value(int(lost), int(won), count, limit) for lost, won in outcomes])
    order = np.argsort(p_values)
    for excess in (0.0, 0.03, 0.2):  # at the limit and beyond it
        for win in np.linspace(0, (1 - limit - excess) / 2, 30):
            reached = probabilities(outcomes, count, win + limit + excess, win)[order].cumsum()
            last = np.append(np.diff(p_values[order]) > 0, True)  # of equal ones all
            assert (reached[last] <= p_values[order][last] + 1e-12).all()


@pytest.mark.parametrize("win", [0.0, 0.004, 0.03])
def test_at_the_limit_a_test_is_wrong_as_often_as_it_may_be(win):
    count, limit, draws = 1000, 0.02, 4000
    counts = np.random.default_rng(0).multinomial(count, [win + limit, win, 1 - 2 * win - limit], draws)
    wrong = np.mean([noninferiority_p_value(int(lost), int(won), count, limit) <= LEVEL for lost, won, _ in counts])
    assert 0.02 < wrong <= LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / draws)


@pytest.mark.parametrize(("losses", "wins"), [(0, 0), (1, 0), (1, 2), (0, 4), (3, 3)])
def test_p_value_is_the_largest_probability_of_anything_as_clear(losses, wins):
    count, limit = 14, 0.3
    outcomes = all_outcomes(count)

    def statistic(lost, won):
        return (limit * count - lost + won) / np.sqrt(lost + won + limit * count / 2)

    as_clear = statistic(*outcomes.T) >= statistic(losses, wins) - 1e-9
    worst = max(
        probabilities(outcomes, count, win + limit, win)[as_clear].sum()
        for win in np.linspace(0, (1 - limit) / 2, 2000)
    )
    # DOUBT pays for not having searched where P(win) cannot be; cells bound from above.
    assert worst <= noninferiority_p_value(losses, wins, count, limit) <= 1.1 * worst + 2 * DOUBT


@pytest.mark.parametrize(("count", "limit"), [(500, 0.02), (3000, 0.005)])
def test_p_value_rises_with_losses_and_falls_with_wins_and_limit(count, limit):
    p = np.array([[noninferiority_p_value(lost, won, count, limit) for won in range(20)] for lost in range(20)])
    assert (np.diff(p, axis=0) >= 0).all()
    assert (np.diff(p, axis=1) <= 1e-3).all()  # the interval of the nuisance parameter moves, too
    looser = np.array([noninferiority_p_value(lost, lost, count, 2 * limit) for lost in range(20)])
    assert (looser < np.diag(p)).all()


def test_rare_disagreement_is_the_clearer():
    p = [noninferiority_p_value(both, both, 3000, 0.005) for both in (0, 5, 20, 80, 300)]
    assert p == sorted(p)
    assert p[0] < 1e-3 < 0.2 < p[-1]


def test_a_loss_at_the_limit_proves_nothing():
    assert noninferiority_p_value(15, 0, 3000, 0.005) == noninferiority_p_value(90, 20, 3000, 0.005) == 1.0


def test_an_always_winning_point_is_beyond_doubt():
    assert noninferiority_p_value(0, 50, 50, 0.1) == DOUBT


def power(count: int, loss: float, win: float, limit: float) -> float:
    """Exact probability that the test passes at 5 %."""
    total, most = 0.0, -1
    for won in range(int(binom.isf(1e-6, count, win)) + 1):
        while noninferiority_p_value(most + 1, won, count, limit) <= LEVEL:
            most += 1
        total += binom.pmf(won, count, win) * binom.cdf(most, count - won, loss / (1 - win))
    return total


def test_power_is_that_of_a_test_that_knows_how_often_the_two_disagree():
    # A mixture of bets passes at 2 % and 35 %.
    assert power(3000, 0.01, 0.008, 0.005) == pytest.approx(0.31, abs=0.02)
    assert power(3000, 0.004, 0.004, 0.005) == pytest.approx(0.89, abs=0.02)


@pytest.mark.parametrize(("losses", "wins"), [(30, 24), (12, 12), (20, 30)])
def test_so_many_images_are_enough_four_times_in_five(losses, wins):
    needed = images_needed(losses, wins, 3000, 0.005, 0.95)
    assert 0.72 < power(needed, losses / 3000, wins / 3000, 0.005) < 0.88
    assert images_needed(losses, wins, 3000, 0.005, 0.99) > needed


def test_images_needed_where_nothing_is_lost_and_where_too_much_is():
    needed = images_needed(0, 0, 100, 0.005, 0.95)
    assert noninferiority_p_value(0, 0, needed, 0.005) <= LEVEL
    assert noninferiority_p_value(0, 0, needed - 20, 0.005) > LEVEL
    assert images_needed(20, 5, 3000, 0.005, 0.95) is None


# The sequence

TRUTH = {  # from the most expensive down: probabilities of a loss and of a win against the largest expert
    "most-accurate": (0.004, 0.010),
    "point-05": (0.006, 0.008),
    "point-04": (0.008, 0.008),
    "point-03": (0.018, 0.008),  # from here down the limit is lost, or more
    "point-02": (0.019, 0.009),
    "point-01": (0.020, 0.010),
    "fastest": (0.027, 0.015),
}
LIMIT = 0.01


def broken_promises(choose) -> float:
    """How often, of 1,000 calibrations of 2,000 images each, the chosen point in truth loses the limit or more."""
    count, rng = 2000, np.random.default_rng(0)
    draws = [rng.multinomial(count, [lost, won, 1 - lost - won], 1000)[:, :2] for lost, won in TRUTH.values()]
    broken = 0
    for counts in np.stack(draws, 1):
        chosen = choose([(name, int(lost), int(won)) for name, (lost, won) in zip(TRUTH, counts, strict=True)], count)
        broken += chosen is not None and TRUTH[chosen][0] - TRUTH[chosen][1] >= LIMIT - 1e-12
    return broken / 1000


ALLOWED = LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / 1000)


def test_of_1000_calibrations_at_most_5_percent_break_their_promise():
    def choose(counts, count):
        tested = fixed_sequence(counts, count, LIMIT, 1 - LEVEL)
        return next((one.operating_point for one in reversed(tested) if one.p_value <= LEVEL), None)

    assert 0.02 < broken_promises(choose) <= ALLOWED


def test_without_the_sequence_promises_would_break_too_often():
    """So the test above can fail: choose the cheapest point that passes alone, and the one that looks good enough."""

    def alone(counts, count):
        passing = [name for name, *lost_won in counts if noninferiority_p_value(*lost_won, count, LIMIT) <= LEVEL]
        return passing[-1] if passing else None

    def as_seen(counts, count):
        passing = [name for name, lost, won in counts if (lost - won) / count < LIMIT]
        return passing[-1] if passing else None

    assert broken_promises(alone) > 2 * ALLOWED
    assert broken_promises(as_seen) > 0.5


def test_nothing_is_tested_after_the_first_that_fails():
    tested = fixed_sequence(iter([("a", 0, 0), ("b", 20, 0), ("c", 0, 0)]), 2000, 0.01, 0.95)
    assert [one.operating_point for one in tested] == ["a", "b"]
    assert tested[0].p_value <= LEVEL < tested[1].p_value


def test_order_is_by_cost_on_the_search_images_whatever_the_report_says():
    def point(name, select, report):
        figures = [Figures(0.9, (0.8, 1.0), {"gmacs": gmacs}, (1.0, 0.0), 100) for gmacs in (select, report)]
        return OperatingPoint(name, "static", (0,), (), *figures)

    front = Front([point("b", 2.0, 9.0), point("a", 1.0, 5.0), point("c", 3.0, 1.0)], ["small", "large"])
    assert [point.name for point in by_falling_cost(front)] == ["c", "b", "a"]


# The object


def make_guarantee(**changes) -> Guarantee:
    values = {
        "operating_point": "good",
        "max_accuracy_loss": 0.01,
        "confidence": 0.95,
        "samples": 900,
        "images": "0123456789abcdef",
        "tested": (Comparison("best", 1, 2, 0.001), Comparison("good", 3, 2, 0.03), Comparison("bad", 9, 2, 0.4)),
        "shared": 0.001,
        "assumptions": ("the labels are right",),
    }
    return Guarantee(**values | changes)


def test_guarantee_comes_back_from_json():
    values = json.loads(json.dumps(make_guarantee().to_dict()))
    assert Guarantee.from_dict(values) == make_guarantee()
    assert Guarantee.from_dict(values | {"colour": "red"}) == make_guarantee()
    assert (values["samples"], values["losses"], values["wins"], values["p_value"]) == (900, 3, 2, 0.03)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"operating_point": "unknown"}, "which was not tested"),
        ({"operating_point": "bad"}, "p-value of 0.4, too large"),
        ({"confidence": 1.5}, "between 0 and 1"),
        ({"max_accuracy_loss": "much"}, "malformed"),
        ({"samples": 5}, "more losses and wins than its 5 images"),
        ({"measure": "luck"}, "got 'luck'"),
        ({"tested": None}, "malformed"),
        ({"tested": [{"operating_point": "good"}]}, "malformed"),
    ],
)
def test_impossible_guarantees_are_refused(changes, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        Guarantee.from_dict(make_guarantee().to_dict() | changes)


# Images that were seen


@pytest.fixture(scope="module")
def splits(digits) -> dict[str, LabelledImages]:
    whole = digits[1]
    parts = {"search": range(100), "report": range(100, 150), "fresh": range(150, 250)}
    return {name: LabelledImages(whole.select(rows)) for name, rows in parts.items()} | {
        "mixed": LabelledImages(whole.select([*range(10), *range(150, 240)])),
        "reported": LabelledImages(whole.select([*range(149, 100, -1), *range(150, 201)])),
    }


def test_seen_images_are_known_in_any_order_and_company(splits, tmp_path):
    seen = SeenImages.of(search=splits["search"], report=splits["report"])
    seen.save(tmp_path)
    for known in (seen, SeenImages.load(tmp_path)):
        assert known.shared(splits["search"]) == known.shared(splits["report"]) == 1.0
        assert known.shared(splits["fresh"]) == 0.0
        assert known.shared(splits["mixed"]) == pytest.approx(0.1)
        assert known.shared(splits["reported"]) == pytest.approx(0.49)
        assert known.unseen(splits["mixed"]).tolist() == list(range(10, 100))
    (tmp_path / "empty").mkdir()
    assert SeenImages.load(tmp_path / "empty") is None


def test_a_trace_of_seen_images_is_left_out_and_more_refused(digits, tmp_path, monkeypatch):
    whole = digits[1]
    SeenImages.of(search=LabelledImages(whole.select(range(100)))).save(tmp_path)
    trace = LabelledImages(whole.select([99, *range(100, 300)]))
    shared, rows = check_unseen(tmp_path, trace)
    assert (shared, rows.tolist()) == (pytest.approx(1 / 201), list(range(1, 201)))
    with pytest.raises(PertinenceError, match="took part in the search"):
        check_unseen(tmp_path, LabelledImages(whole.select(range(97, 300))))
    # Of a split that is not hashed whole nobody knows which image to leave out, nor whether all that were seen are.
    monkeypatch.setattr("pertinence.data.dataset.HASHED_IMAGES", 101)
    with pytest.raises(PertinenceError, match="took part in the search"):
        check_unseen(tmp_path, LabelledImages(whole.select([99, *range(100, 300)])))
    SeenImages.of(search=LabelledImages(whole.select(range(202)))).save(tmp_path)
    with pytest.raises(PertinenceError, match="took part in the search"):
        check_unseen(tmp_path, LabelledImages(whole.select([0, *range(202, 302)])))


def test_of_large_splits_the_share_is_estimated(digits, monkeypatch):
    monkeypatch.setattr("pertinence.data.dataset.HASHED_IMAGES", 100)
    large = LabelledImages(digits[1].select(range(400)))
    assert len(large.digests) == 100
    rows = np.random.default_rng(0).permutation(400)[:90].tolist()
    some = LabelledImages(digits[1].select(rows))
    assert SeenImages.of(search=large).shared(some) == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize("counts", [None, {}, {"search": "5", "report": "5"}, {"search": "4"}, {"search": "many"}])
def test_damaged_record_of_seen_images_is_refused(tmp_path, counts):
    if counts is None:
        (tmp_path / SEEN).write_bytes(b"nonsense")
    else:
        save_file({"search": torch.arange(5)}, tmp_path / SEEN, counts)
    with pytest.raises(PertinenceError, match="is damaged"):
        SeenImages.load(tmp_path)


# From end to end


@pytest.fixture(scope="module")
def data(digits, tmp_path_factory) -> Path:
    """Search images, fresh ones to calibrate on, and others among which are some of the report."""
    folder = tmp_path_factory.mktemp("data")
    digits[1].select(range(450)).to_parquet(folder / "validation.parquet")
    digits[2].to_parquet(folder / "test.parquet")
    digits[1].select(range(450, 810)).to_parquet(folder / "train.parquet")
    return folder


def search(digits, digit_experts, folder: Path, **settings) -> Path:
    args = SearchArguments(population=6, generations=2, baselines=False, device="cpu", **settings)
    images, report = digits[1].select(range(450)), digits[1].select(range(800, 900))
    DispatcherSearch(digit_experts, images, args, report_dataset=report).run().save(folder)
    return folder


@pytest.fixture(scope="module")
def run(digits, digit_experts, tmp_path_factory) -> Path:
    return search(digits, digit_experts, tmp_path_factory.mktemp("run") / "digits")


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "digits"))


def command(folder: Path, data: Path, *flags, split: str = "test") -> int:
    return main(["calibrate", str(folder), "--dataset", str(data), "--split", split, "--device", "cpu", *flags])


def test_calibrate_stores_what_it_promises_and_info_shows_it(copied, data, digits, capsys):
    before = json.loads((copied / "config.json").read_text())
    before["operating_point"] = before["front"][-1]["name"]
    (copied / "config.json").write_text(json.dumps(before))
    record = (copied / "search_result.json").read_bytes()
    assert command(copied, data, "--max-accuracy-loss", "0.05") == 0
    printed = capsys.readouterr().out
    after = json.loads((copied / "config.json").read_text())
    stored = after.pop("guarantee")
    assert before.pop("guarantee", None) is None
    assert stored["operating_point"] != before["operating_point"]
    assert after == before | {"operating_point": stored["operating_point"]}
    assert (copied / "search_result.json").read_bytes() == record
    assert [path.name for path in copied.glob(".*")] == []  # nothing half written
    assert stored["samples"] == len(digits[2])
    assert stored["shared"] == 0.0
    assert any("exchangeable" in sentence for sentence in stored["assumptions"])
    assert any("labels" in sentence for sentence in stored["assumptions"])
    assert main(["info", str(copied)]) == 0
    shown = capsys.readouterr().out
    sentence = f"Guarantee: {stored['operating_point']!r} loses less than 5 points of accuracy"
    for text in (printed, shown):
        assert sentence in text
        assert f"{len(digits[2])} calibration images" in text
        assert "Assumes: the labels of the calibration images are right" in text
    assert f"Default operating point: {stored['operating_point']}" in shown


def test_copies_are_no_further_evidence(copied, digits):
    few = digits[2].select(range(40))
    with pytest.raises(PertinenceError, match="no operating point can be guaranteed"):
        calibrate(copied, few, max_accuracy_loss=0.005)
    with pytest.raises(PertinenceError, match="on 40 images"):
        calibrate(copied, concatenate_datasets([few] * 20), max_accuracy_loss=0.005)


def test_images_without_labels_promise_nothing(copied, digits):
    with pytest.raises(PertinenceError, match="loaded without labels"):
        calibrate(copied, LabelledImages(digits[2], needs_labels=False))


def test_the_cheapest_that_qualifies_is_chosen_by_what_the_model_itself_answers(copied, data, digits):
    guarantee = calibrate(copied, DataArguments(str(data), "test"), RuntimeArguments(device="cpu"), 0.05)
    model = PertinenceForImageClassification.from_pretrained(copied)
    images = LabelledImages(digits[2])
    batch = [images[index] for index in range(len(images))]
    largest = model.experts[-1](batch)[0].argmax(1) == images.labels
    costs = []
    for tested in guarantee.tested:
        right = model(batch, operating_point=tested.operating_point).logits.argmax(1) == images.labels
        assert (tested.losses, tested.wins) == ((largest & ~right).sum().item(), (~largest & right).sum().item())
        costs.append(model.front.find(tested.operating_point).select.gmacs)
    assert calibrate(copied, digits[2], max_accuracy_loss=0.05).tested == guarantee.tested
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == max(point.select.gmacs for point in model.front)
    passed = [tested.operating_point for tested in guarantee.tested if tested.p_value <= LEVEL]
    assert guarantee.operating_point == passed[-1]
    assert len(passed) >= len(guarantee.tested) - 1
    store_guarantee(copied, guarantee)
    config = PertinenceConfig.from_pretrained(copied)
    assert config.build_guarantee() == guarantee
    saved = copied.with_name("again")
    PertinenceForImageClassification.from_pretrained(copied).save_pretrained(saved)
    assert PertinenceConfig.from_pretrained(saved).build_guarantee() == guarantee


def test_where_no_point_qualifies_it_says_how_many_images_would(copied, data, capsys):
    before = (copied / "config.json").read_bytes()
    assert command(copied, data, "--max-accuracy-loss", "0.001", "--limit", "200") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: no operating point can be guaranteed to lose less than 0.1 points of accuracy")
    assert "images would be needed" in message or "allow a larger loss" in message
    assert (copied / "config.json").read_bytes() == before


def test_images_of_the_search_and_of_its_report_are_refused(copied, data, capsys):
    for split in ("validation", "train"):
        assert command(copied, data, "--max-accuracy-loss", "0.2", split=split) == 1
        assert "calibration images took part in the search" in capsys.readouterr().err.splitlines()[-1]
    assert json.loads((copied / "config.json").read_text())["guarantee"] is None


def test_a_loaded_model_is_measured_as_it_is(run, digits, monkeypatch, caplog):
    model = PertinenceForImageClassification.from_pretrained(run)
    assert calibrate(model, digits[2], max_accuracy_loss=0.1) == calibrate(run, digits[2], max_accuracy_loss=0.1)
    assert evaluate_model(model, digits[2]).to_dict() == evaluate_model(run, digits[2]).to_dict()
    with pytest.raises(PertinenceError, match="calibration images took part in the search"):
        calibrate(model, digits[1].select(range(450)), max_accuracy_loss=0.2)
    assert "does not say" not in caplog.text
    monkeypatch.chdir(run)  # where what lies is of another model
    composed = PertinenceForImageClassification.compose(
        list(model.experts), model.front, {p.name: model.dispatcher.heads(p) for p in model.front}, "fastest"
    )
    assert calibrate(composed, digits[2], max_accuracy_loss=0.1).shared is None
    assert "The model does not say which images its search has seen" in caplog.text


def test_a_model_from_elsewhere_is_calibrated_with_a_warning(copied, data, capsys, caplog):
    (copied / SEEN).unlink()
    assert command(copied, data, "--max-accuracy-loss", "0.1") == 0
    assert "Not checked" in capsys.readouterr().out
    assert json.loads((copied / "config.json").read_text())["guarantee"]["shared"] is None


def test_without_labels_agreement_is_promised(data, digits, digit_experts, tmp_path, capsys):
    folder = search(digits, digit_experts, tmp_path / "run", labels="agree")
    assert command(folder, data, "--max-accuracy-loss", "0.2") == 0
    printed = capsys.readouterr().out
    assert "points of agreement against the largest expert" in printed
    assert "accuracy" not in printed
    assert LABELS_RIGHT not in printed
    guarantee = PertinenceConfig.from_pretrained(folder).build_guarantee()
    assert guarantee.measure == "agreement"
    assert guarantee.proof.wins == 0


def test_it_says_when_only_the_largest_expert_qualifies(capsys):
    figures = Figures(0.9, (0.8, 1.0), {"gmacs": 1.0}, (0.0, 1.0), 100)
    front = Front([OperatingPoint(name, "static", (index,), (), figures) for index, name in enumerate("ab")], "ab")
    of_largest = make_guarantee(operating_point="b", tested=(Comparison("b", 0, 0, 0.01), Comparison("a", 9, 0, 0.9)))
    assert "Only the largest expert itself qualifies" in of_largest.describe(front)
    of_other = make_guarantee(operating_point="a", tested=(Comparison("b", 0, 0, 0.01), Comparison("a", 1, 0, 0.02)))
    assert "Only" not in of_other.describe(front)


def test_config_refuses_a_guarantee_of_something_else(copied):
    values = json.loads((copied / "config.json").read_text())

    def load(name: str, **changes) -> Guarantee | None:
        guarantee = make_guarantee(operating_point=name, tested=(Comparison(name, 0, 0, 0.01),)).to_dict() | changes
        (copied / "config.json").write_text(json.dumps(values | {"guarantee": guarantee}))
        return PertinenceConfig.from_pretrained(copied).build_guarantee()

    name = values["front"][0]["name"]
    assert load(name).operating_point == name
    with pytest.raises(PertinenceError, match="there is no operating point 'unknown'"):
        load("unknown")
    with pytest.raises(PertinenceError, match="`guarantee` is malformed"):
        load(name, tested="x")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--max-accuracy-loss", "0"], "max_accuracy_loss must lie between 0 and 1"),
        (["--confidence", "1"], "confidence must lie between 0 and 0.999"),
    ],
)
def test_impossible_promises_get_one_sentence(copied, data, flags, sentence, capsys):
    assert command(copied, data, *flags) == 1
    assert sentence in capsys.readouterr().err
