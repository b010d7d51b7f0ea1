"""Promises of single answers: error rates that are kept over draws, sets that cover, a model that abstains."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from servers import free_port, serving
from transformers import pipeline

from pertinence import (
    Budget,
    DispatcherSearch,
    OperatingPoint,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
    Promises,
    RoutingMonitor,
    Stage,
    StreamDispatcher,
    calibrate_answers,
    classify,
    store_promises,
)
from pertinence.commands.main import main
from pertinence.data.dataset import LabelledImages
from pertinence.evaluation.certainty import with_certainty
from pertinence.evaluation.outcomes import route_predictions
from pertinence.evaluation.promising import answerable, promise_errors, promise_sets
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.routing.heads import threshold_head
from pertinence.search.arguments import SearchArguments


LEVEL, DRAWS, CALIBRATION, POPULATION = 0.05, 300, 1500, 10000
ALLOWED = LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / DRAWS)


# On tables of predictions


def make_table(count: int, seed: int) -> Predictions:
    """Predictions of a weak and a strong expert for images of every difficulty."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (count,), generator=generator)
    ease, shared = torch.randn(count, 1, generator=generator), torch.randn(count, 6, generator=generator)
    experts = []
    for strength in (2.0, 2.5):
        logits = shared + 0.2 * torch.randn(count, 6, generator=generator)
        logits += (strength + 2 * ease).clamp_min(0) * torch.nn.functional.one_hot(labels, 6)
        experts.append(ExpertPredictions.keep(logits))
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs([1.0, 5.0]))


@pytest.fixture(scope="module")
def cascade() -> tuple:
    """A cascade that knows how certain it is, its heads, and the images that stand for the population."""
    point = OperatingPoint("cascade", "thresholds", (0, 1), (Stage(0, "confidence"),))
    heads = [threshold_head(point, point.stages[0], 0.8, 2)]
    return with_certainty(point, heads, make_table(3000, 0)), heads, make_table(POPULATION, 1)


def broken(cascade, rate: float, choose) -> float:
    """How often the error rate over the population exceeds the one that was promised of a draw from it."""
    point, heads, population = cascade
    reached, right = answerable(point, heads, population)
    generator, count = torch.Generator().manual_seed(2), 0
    for _ in range(DRAWS):
        threshold = choose(point, heads, population, torch.randint(0, POPULATION, (CALIBRATION,), generator=generator))
        count += threshold is not None and (~right[reached >= threshold]).mean() > rate
    return count / DRAWS


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_a_promised_error_rate_is_exceeded_in_at_most_5_percent_of_the_draws(cascade, rate):
    def promised(point, heads, population, rows):
        return promise_errors(point, heads, population.subset(rows), [rate], 1 - LEVEL)[0].threshold

    assert broken(cascade, rate, promised) <= ALLOWED


def test_the_rate_as_it_was_seen_would_be_exceeded_far_too_often(cascade):
    """So the test above can fail: without the binomial bound the promise breaks."""
    reached, right = answerable(*cascade)

    def as_seen(point, heads, population, rows):
        order = np.argsort(-reached[rows])
        wrong = (~right[rows][order]).cumsum() / np.arange(1, CALIBRATION + 1)
        return reached[rows][order][np.flatnonzero(wrong <= 0.1)[-1]]

    assert broken(cascade, 0.1, as_seen) > 4 * ALLOWED


def test_several_rates_share_the_error_probability(cascade):
    point, heads, population = cascade
    images = population.subset(torch.arange(CALIBRATION))
    (alone,) = promise_errors(point, heads, images, [0.05], 0.95)
    together = promise_errors(point, heads, images, [0.05, 0.1, 0.2], 0.95)
    assert [one.max_error_rate for one in together] == [0.05, 0.1, 0.2]
    assert together[0].answered <= alone.answered
    assert all(one.p_value <= 0.05 / 3 for one in together)


def test_giving_up_saves_and_is_what_the_threshold_says(cascade):
    point, heads, population = cascade
    (promise,) = promise_errors(point, heads, population.subset(torch.arange(CALIBRATION)), [0.02], 0.95)
    reached, _ = answerable(point, heads, population)
    (_, routing), *_ = route_predictions(point, heads, population, promise.threshold)
    assert routing.gave_up.float().mean() > 0.1
    np.testing.assert_array_equal(routing.abstained, reached[: len(routing.abstained)] < promise.threshold)
    assert not routing.experts_run[routing.gave_up][:, 1].any(), "they stop at the first expert"
    (_, everything), *_ = route_predictions(point, heads, population)
    assert routing.gmacs.mean() < 0.9 * everything.gmacs.mean()
    assert not everything.abstained.any()
    torch.testing.assert_close(routing.logits[~routing.gave_up], everything.logits[~routing.gave_up])


def test_confidence_is_calibrated_on_every_path(cascade):
    point, heads, population = cascade
    parts = [(chunk, routing) for chunk, routing in route_predictions(point, heads, population)]
    confidence = torch.cat([routing.confidence for _, routing in parts])
    right = torch.cat([routing.logits.argmax(1) == chunk.target_columns for chunk, routing in parts])
    last = torch.cat([routing.expert_indices for _, routing in parts])
    for expert in (0, 1):
        for low, high in ((0.3, 0.6), (0.6, 0.9), (0.9, 1.0)):
            rows = (last == expert) & (confidence >= low) & (confidence < high)
            if rows.sum() > 300:
                share, stated = right[rows].double().mean().item(), confidence[rows].double().mean().item()
                assert share == pytest.approx(stated, abs=0.04)


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99])
def test_sets_cover_as_often_as_promised(cascade, coverage):
    point, heads, population = cascade
    (promise,) = promise_sets(point, heads, population.subset(torch.arange(CALIBRATION)), [coverage])
    covered, sizes = [], []
    for chunk, routing in route_predictions(point, heads, population.subset(torch.arange(CALIBRATION, POPULATION))):
        sets = promise.sets(routing.logits)
        assert sets[torch.arange(len(sets)), routing.logits.argmax(1)].all(), "the answer is in its own set"
        covered.append(sets.gather(1, chunk.target_columns[:, None]).double())
        sizes.append(sets.sum(1).double())
    deviation = math.sqrt(coverage * (1 - coverage) * (1 / CALIBRATION + 1 / (POPULATION - CALIBRATION)))
    assert torch.cat(covered).mean() >= coverage - 3 * deviation
    assert torch.cat(sizes).mean() == pytest.approx(promise.mean_size, rel=0.05)
    numpy = promise.sets(routing.logits.numpy())
    np.testing.assert_array_equal(numpy, sets)


def test_of_too_few_images_the_sets_have_every_label(cascade):
    point, heads, population = cascade
    (promise,) = promise_sets(point, heads, population.subset(torch.arange(20)), [0.99])
    assert (promise.threshold, promise.mean_size) == (None, 6.0)
    assert promise.sets(torch.randn(3, 6)).all()


# A model of digits, from its search on


@pytest.fixture(scope="module")
def run(digits, digit_experts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "digits"
    args = SearchArguments(population=6, generations=2, baselines=False, device="cpu")
    DispatcherSearch(digit_experts, digits[1].select(range(600)), args).run().save(folder)
    digits[2].to_parquet(folder.parent / "data" / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def calibrated(run) -> Path:
    flags = ["--max-error-rate", "0.06", "0.0001", "--coverage", "0.9", "--split", "test", "--device", "cpu"]
    assert main(["calibrate", str(run), "--dataset", str(run.parent / "data"), *flags]) == 0
    return run


@pytest.fixture
def model(calibrated) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(calibrated)


@pytest.fixture(scope="module")
def batch(digits) -> list[torch.Tensor]:
    """A part of the calibration images."""
    images = LabelledImages(digits[2])
    return [images[index] for index in range(100)]


def to_picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_every_answer_has_a_confidence_and_none_abstains_unasked(model, batch):
    out = model(batch)
    assert out.confidence.dtype == torch.float32
    assert out.confidence.shape == (len(batch),)
    assert ((out.confidence > 0) & (out.confidence < 1)).all()
    assert not out.abstained.any()
    assert out.prediction_sets is None
    torch.testing.assert_close(model(batch[:1]).confidence, out.confidence[:1])


def test_a_budget_abstains_as_it_was_calibrated(model, batch, digits):
    everything = model(batch, operating_point="most-accurate")
    images = LabelledImages(digits[2])
    point = model.set_budget(max_error_rate=0.06)
    promise = next(
        one for one in model.promises.errors if (one.operating_point, one.max_error_rate) == (point.name, 0.06)
    )
    out = model([images[index] for index in range(len(images))])
    labels = images.labels
    answered = ~out.abstained
    assert 0 < answered.sum() == promise.answered
    assert (out.logits.argmax(1) != labels)[answered].sum() == promise.wrong
    assert promise.wrong / promise.answered < 0.06
    assert out.logits.isfinite().all()
    model.set_budget(operating_point="most-accurate")
    again = model(batch)
    assert torch.equal(again.logits, everything.logits), "another budget answers everything again"
    assert not again.abstained.any()


def test_a_rate_holds_in_one_call_only(model, batch):
    point = model.set_budget(max_error_rate=0.06).name
    some, none = model(batch), model(batch, max_error_rate=1)
    assert some.abstained.any()
    assert not none.abstained.any()
    model.set_budget(operating_point=point)
    assert torch.equal(model(batch, max_error_rate=0.06).abstained, some.abstained)


def test_saving_keeps_the_promise(model, batch, tmp_path):
    model.set_budget(max_error_rate=0.06)
    model.save_pretrained(tmp_path)
    again = PertinenceForImageClassification.from_pretrained(tmp_path)
    assert again.config.max_error_rate == 0.06
    assert again.promises == model.promises
    for name in ("confidence", "abstained", "logits"):
        assert torch.equal(again(batch)[name], model(batch)[name])


def test_a_rate_that_was_not_calibrated_names_the_command(model, run):
    with pytest.raises(PertinenceError, match=r"pertinence calibrate RUN --max-error-rate 0.03.*calibrated were"):
        model.set_budget(max_error_rate=0.03)
    with pytest.raises(PertinenceError, match=r"pertinence calibrate RUN --coverage 0.5.*calibrated were 0.9"):
        model(torch.zeros(1, 3, 8, 8), coverage=0.5)
    with pytest.raises(PertinenceError, match="expected a share from 0 to 1"):
        model.set_budget(max_error_rate=5)
    model.promises = None
    with pytest.raises(PertinenceError, match=r"--max-error-rate 0.06"):
        model.set_budget(max_error_rate=0.06)


def test_a_rate_that_cannot_be_kept_names_the_least_one(model):
    with pytest.raises(PertinenceError, match="cannot keep max_error_rate=0.0001.*least rate that it can keep is"):
        model.set_budget(max_error_rate=0.0001)


def test_with_a_limit_of_cost_the_point_stays_within_it(model, batch):
    costs = [point.select.gmacs for point in model.front]
    limit = (costs[0] + costs[-1]) / 2
    model.set_budget(max_error_rate=0.06, gmacs=limit)
    assert model(batch).gmacs.mean() <= 1.1 * limit
    assert model.set_budget(max_error_rate=0.06, operating_point="most-accurate").name == model.front[-1].name
    with pytest.raises(PertinenceError, match="no operating point costs at most"):
        model.set_budget(max_error_rate=0.06, gmacs=costs[0] / 100)


def test_prediction_sets_have_the_calibrated_coverage(model, batch, digits):
    sets = model(batch, coverage=0.9).prediction_sets
    assert (sets.dtype, sets.shape) == (torch.bool, (len(batch), 10))
    labels = LabelledImages(digits[2]).labels[: len(batch)]
    assert sets.gather(1, labels[:, None]).double().mean() >= 0.85


def test_calibrated_scores_are_the_confidence_in_a_pipeline(calibrated, model, batch):
    scored = PertinenceForImageClassification.from_pretrained(calibrated, calibrated_scores=True)
    plain, tempered = model(batch), scored(batch)
    assert torch.equal(tempered.logits.argmax(1), plain.logits.argmax(1))
    certain = plain.confidence > 0.2  # and above one in ten labels
    top = tempered.logits.softmax(1).max(1).values
    torch.testing.assert_close(top[certain], plain.confidence[certain], atol=1e-3, rtol=0)
    run_pipeline = pipeline("image-classification", scored, image_processor=PertinenceImageProcessor())
    (best, *_) = run_pipeline(to_picture(batch[0]))
    assert best["score"] == pytest.approx(plain.confidence[0].item(), abs=1e-3)


def test_streams_and_files_tell_confidence_and_abstention(model, batch, calibrated, tmp_path):
    point = model.set_budget(max_error_rate=0.06).name
    expected = model(batch[:40])
    answers = list(StreamDispatcher(model, interval=2)(batch[:4]))
    assert [answer.confidence is None for answer in answers] == [False, True, False, True]
    assert [answer.abstained for answer in answers[::2]] == expected.abstained[:4:2].tolist()
    assert answers[1].abstained == answers[0].abstained
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(40):
        to_picture(batch[index]).save(folder / f"{index:03d}.png")
    classify(calibrated, folder, tmp_path / "answers.parquet", budget=Budget(max_error_rate=0.06))
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [row["abstained"] for row in rows] == expected.abstained.tolist()
    assert [row["ood_p_value"] for row in rows] == pytest.approx(expected.ood_p_value.tolist(), abs=1e-4)
    assert [row["confidence"] for row in rows] == pytest.approx(expected.confidence.tolist(), abs=1e-5)
    assert {row["operating_point"] for row in rows} == {point}
    classify(calibrated, folder, tmp_path / "all.parquet", budget=Budget(operating_point=point))
    assert not any(row["abstained"] for row in pq.read_table(tmp_path / "all.parquet").to_pylist())


def test_a_monitor_does_not_compare_what_gives_up_with_what_answered_everything(model):
    RoutingMonitor(model)
    model.set_budget(max_error_rate=0.06)
    with pytest.raises(PertinenceError, match="gives up early"):
        RoutingMonitor(model)


def test_a_server_keeps_the_promise(model, calibrated, batch, tmp_path):
    able = [one.operating_point for one in model.promises.errors if one.max_error_rate == 0.06 and one.threshold]
    out = model(batch[:20], operating_point=able[0], max_error_rate=0.06)
    url = f"http://127.0.0.1:{free_port()}"
    flags = ["--port", url.rpartition(":")[2], "--device", "cpu", "--max-error-rate", "0.06"]
    words = [sys.executable, "-m", "pertinence", "serve", calibrated, *flags, "--operating-point", able[0]]
    with serving(words, f"{url}/ready", tmp_path / "log"):
        for row, image in enumerate(batch[:20]):
            stream = io.BytesIO()
            to_picture(image).save(stream, "PNG")
            with urlopen(Request(f"{url}/?details=1", stream.getvalue())) as response:
                found, headers = json.load(response), response.headers
            assert found["abstained"] == out.abstained[row].item()
            assert headers["X-Abstained"] == str(found["abstained"]).lower()
            assert found["confidence"] == pytest.approx(out.confidence[row].item(), abs=1e-4)
            assert found["ood_p_value"] == pytest.approx(out.ood_p_value[row].item(), abs=1e-4)
        for asked, sentence in (("operating_point=fastest", "cannot keep max_error_rate=0.06"),
                                ("max_error_rate=0.5", "there is no parameter 'max_error_rate'")):  # fmt: skip
            with pytest.raises(HTTPError) as refused:
                urlopen(Request(f"{url}/?{asked}", stream.getvalue()))
            assert refused.value.code == 400
            assert sentence in json.load(refused.value)["error"]


def test_seen_images_promise_nothing(run, digits):
    with pytest.raises(PertinenceError, match="calibration images took part in the search"):
        calibrate_answers(run, digits[1].select(range(600)), max_error_rate=0.06)
    with pytest.raises(PertinenceError, match="nothing to promise"):
        calibrate_answers(run, digits[2])
    with pytest.raises(PertinenceError, match="expected a share between 0 and 1"):
        calibrate_answers(run, digits[2], coverage=90.0)


def test_promises_are_a_table_and_come_back_from_json(model, calibrated, tmp_path, caplog, digits):
    promises = model.promises
    assert Promises.from_dict(json.loads(json.dumps(promises.to_dict()))) == promises
    assert len(promises.to_pandas()) == 3 * len(model.front)
    copy = Path(shutil.copytree(calibrated, tmp_path / "copy"))
    again = calibrate_answers(copy, digits[2], max_error_rate=[0.06, 0.0001], coverage=0.9)
    assert "only the first calibration" in caplog.text
    assert again == promises
    store_promises(copy, again)
    assert PertinenceForImageClassification.from_pretrained(copy).promises == again


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"confidence": 2}, "between 0 and 1"),
        ({"errors": [{"rate": 1}]}, "malformed"),
        ({"samples": 0}, "calibration images"),
        ({"measure": "luck"}, "got 'luck'"),
    ],
)
def test_impossible_promises_are_refused(model, change, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        Promises.from_dict(model.promises.to_dict() | change)
