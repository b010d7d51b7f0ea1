"""The guarantee: a test that is right too often never, a promise that is kept, on images that nothing has seen."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import concatenate_datasets

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
from pertinence.evaluation.noninferiority import noninferiority_p_value
from pertinence.predictions.arguments import RuntimeArguments
from pertinence.routing.guarantee import Comparison
from pertinence.search.arguments import SearchArguments


LEVEL = 0.05


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


@pytest.mark.nightly
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
    assert f"The default point, {stored['operating_point']}, saves " in shown


def test_copies_are_no_further_evidence(copied, digits):
    few = digits[2].select(range(40))
    with pytest.raises(PertinenceError, match="no operating point can be guaranteed"):
        calibrate(copied, few, max_accuracy_loss=0.005)
    with pytest.raises(PertinenceError, match="on 40 images"):
        calibrate(copied, concatenate_datasets([few] * 20), max_accuracy_loss=0.005)


def test_images_without_labels_promise_nothing(copied, digits):
    with pytest.raises(PertinenceError, match="loaded without labels"):
        calibrate(copied, LabelledImages(digits[2], needs_labels=False))


@pytest.mark.nightly
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
    assert "points of agreement against the expert '" in printed
    assert "accuracy" not in printed
    assert LABELS_RIGHT not in printed
    guarantee = PertinenceConfig.from_pretrained(folder).build_guarantee()
    assert guarantee.measure == "agreement"
    assert guarantee.proof.wins == 0


def test_it_says_when_only_the_largest_expert_qualifies(capsys):
    figures = Figures(0.9, (0.8, 1.0), {"gmacs": 1.0}, (0.0, 1.0), 100)
    front = Front([OperatingPoint(name, "static", (index,), (), figures) for index, name in enumerate("ab")], "ab")
    of_largest = make_guarantee(operating_point="b", tested=(Comparison("b", 0, 0, 0.01), Comparison("a", 9, 0, 0.9)))
    assert "Only 'b' itself qualifies" in of_largest.describe(front)
    assert "against the largest expert" in of_largest.sentence, "of a model of the first edition"
    assert "against the expert 'a'" in replace(of_largest, reference="a").sentence
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
        (["--max-accuracy-loss", "0"], "max_accuracy_loss=0 can never be guaranteed"),
        (["--confidence", "1"], "confidence must lie between 0 and 0.999"),
    ],
)
def test_impossible_promises_get_one_sentence(copied, data, flags, sentence, capsys):
    assert command(copied, data, *flags) == 1
    assert sentence in capsys.readouterr().err
