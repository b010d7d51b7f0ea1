"""A model of format version 1, saved once by tests/fixtures/make_format_1.py: it loads, and answers as it did then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pertinence import PertinenceError, PertinenceForImageClassification, RoutingMonitor
from pertinence.commands.main import main
from pertinence.data.dataset import LabelledImages
from pertinence.data.seen import SeenImages
from pertinence.evaluation.baselines import load_baselines
from pertinence.search.folder import check_output_dir


FOLDER = Path(__file__).parents[1] / "fixtures" / "format_1"
POINTS = [
    "fastest",
    "cheapest-lossless",
    "point-02",
    "point-03",
    "point-04",
    "most-accurate",
    "by-features",
    "by-both",
]


@pytest.fixture(scope="module")
def model() -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """Images, and the answers of the version that saved the model."""
    return load_file(FOLDER / "expected.safetensors")


def check_answers(model: PertinenceForImageClassification, expected: dict[str, torch.Tensor], point: str) -> None:
    out = model(expected["images"], operating_point=point)
    assert torch.equal(out.experts_run, expected[f"{point}.experts_run"].bool())
    # Last layers of networks as small as these have large weights: rounding is seen in the third decimal.
    torch.testing.assert_close(out.logits, expected[f"{point}.logits"], atol=5e-3, rtol=0)
    assert out.confidence is None, "which was fitted by no search of that time"
    assert not out.abstained.any()


@pytest.mark.parametrize("point", POINTS)
def test_it_answers_as_it_did(model, expected, point):
    check_answers(model, expected, point)


def test_its_points_are_told_apart_by_the_stored_answers(expected):
    ways = {point: expected[f"{point}.experts_run"].tolist() for point in POINTS}
    assert {tuple(ran) for way in ways.values() for ran in way} == {(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)}
    assert len({str(way) for way in ways.values()}) >= 5


def test_it_loads_without_a_warning(caplog):
    model, info = PertinenceForImageClassification.from_pretrained(FOLDER, output_loading_info=True)
    assert not caplog.records
    assert not any(info.values())
    assert [point.name for point in model.front] == POINTS
    assert model.config.operating_point == "cheapest-lossless"  # chosen by the guarantee
    assert model.config.id2label == {index: str(index) for index in range(10)}


def test_it_loads_lazily_and_from_elsewhere(expected, tmp_path):
    moved = shutil.copytree(FOLDER, tmp_path / "moved")
    check_answers(PertinenceForImageClassification.from_pretrained(moved, lazy=True), expected, "by-both")


def test_what_this_version_makes_of_it_says_the_same(model, expected, tmp_path):
    model.save_pretrained(tmp_path / "again", save_experts=True)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "again")
    assert again.front.to_list() == model.front.to_list()
    assert again.config.experts == model.config.experts
    assert again.config.guarantee == model.config.guarantee
    for point in POINTS:
        check_answers(again, expected, point)


def test_what_was_measured_and_promised_is_there(model, capsys):
    assert model.config.build_guarantee().operating_point == "cheapest-lossless"
    assert model.front.choose(latency_ms=1e6).name == "most-accurate"
    assert model.front.choose(gmacs=1e-4).name == "cheapest-lossless"
    shares = model.front.find("cheapest-lossless").report.expert_shares
    assert RoutingMonitor(model).expected_shares == pytest.approx(shares, abs=0.01)
    assert main(["info", str(FOLDER)]) == 0
    shown = capsys.readouterr().out
    assert "Guarantee: 'cheapest-lossless' loses less than 10 points of accuracy" in shown


def test_what_lies_beside_it_is_read(model, digits):
    baselines = load_baselines(FOLDER, len(model.experts), model.config.feature_sizes)
    assert {name.split(" of ")[0] for name in baselines} >= {"max-softmax chain", "cascade without search"}
    seen = SeenImages.load(FOLDER)
    assert seen.shared(LabelledImages(digits[1].select(range(500)))) == 1.0
    assert seen.shared(LabelledImages(digits[2].select(range(150, 300)))) == 0.0
    settings = json.loads((FOLDER / "search_result.json").read_text())["settings"]
    check_output_dir(FOLDER, settings)
    with pytest.raises(PertinenceError, match=r"holds another search \(its seed is 0, not 7\)"):
        check_output_dir(FOLDER, settings | {"seed": 7})
