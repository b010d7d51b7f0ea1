"""Measured latency: written beside the GMACs by `pertinence benchmark`, and met by budgets of milliseconds."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, Features
from datasets import Image as ImageColumn

from pertinence import Figures, Front, OperatingPoint, PertinenceError, PertinenceForImageClassification
from pertinence.commands.main import main
from pertinence.data.arguments import DataArguments
from pertinence.evaluation.arguments import BenchmarkArguments
from pertinence.evaluation.latency import benchmark
from pertinence.routing.front import Stage
from pertinence.routing.heads import Head, threshold_head
from pertinence.routing.metrics import Latency


@pytest.fixture
def folder(tiny_experts, tmp_path) -> Path:
    """A model of two points that were measured by a search."""
    pool = list(PertinenceForImageClassification.from_experts(tiny_experts, 0.6).experts)

    def figures(accuracy: float, gmacs: float) -> Figures:
        return Figures(accuracy, (accuracy, accuracy), {"gmacs": gmacs}, (0.5, 0.5), 100)

    points = [
        OperatingPoint("small", "static", (0,), select=figures(0.8, 0.01)),
        OperatingPoint("chain", "thresholds", (0, 1), (Stage(0),), figures(0.9, 0.02)),
    ]
    heads: dict[str, list[Head]] = {"chain": [threshold_head(points[1], points[1].stages[0], 0.6, 2)]}
    front = Front(points, [expert.entry.name for expert in pool])
    PertinenceForImageClassification.compose(pool, front, heads, "chain").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def latencies(folder: Path) -> dict[str, list[Latency]]:
    front = PertinenceForImageClassification.from_pretrained(folder).front
    return {point.name: list(point.latency) for point in front}


def test_it_times_every_point_and_notes_it(folder, images, tmp_path, capsys):
    rows = [{"image": image.permute(1, 2, 0).numpy()} for image in images(10, 40)]
    dataset = Dataset.from_list(rows, features=Features({"image": ImageColumn()}))
    (tmp_path / "images").mkdir()
    dataset.to_parquet(tmp_path / "images" / "train.parquet")
    given = ["--dataset", str(tmp_path / "images"), "--split", "train", "--rounds", "2"]
    assert main(["benchmark", str(folder), "--batch-size", "16", "1", *given]) == 0
    shown = capsys.readouterr().out
    assert "On cpu, " in shown
    assert (folder / "latency.png").stat().st_size > 5000
    table = shown.splitlines()[2:10]
    assert [line.split("  ")[0] for line in table[:2]] == ["small", "chain"]
    assert sum(" alone " in line for line in table) == 4, "two experts, each in batches of 1 and of 16"
    for entries in latencies(folder).values():
        assert [(e.device, e.batch_size, e.images) for e in entries] == [("cpu", 1, "given"), ("cpu", 16, "given")]
        assert all(0 < e.low <= e.milliseconds <= e.high and math.isfinite(e.high) for e in entries)


@pytest.mark.nightly
def test_measuring_again_replaces_only_what_was_measured(folder):
    assert main(["benchmark", str(folder), "--batch-size", "1", "2", "--rounds", "1"]) == 0
    before = latencies(folder)
    again = ["--operating-point", "chain", "--batch-size", "2", "--rounds", "1"]
    assert main(["benchmark", str(folder), *again]) == 0
    after = latencies(folder)
    assert after["small"] == before["small"]
    assert after["chain"][0] == before["chain"][0]
    assert after["chain"][1] != before["chain"][1]
    assert {entry.images for entry in after["chain"]} == {"synthetic"}


def test_the_result_as_json_has_points_experts_quantiles_and_speed_ups(folder, capsys):
    flags = ["--batch-size", "1", "4", "--rounds", "2", "--operating-point", "small", "chain", "--json"]
    assert main(["benchmark", str(folder), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    names = json.loads((folder / "config.json").read_text())["experts"]
    alone = [f"{expert['name']} alone" for expert in names]
    assert [row["name"] for row in result["latency"]] == ["small", "chain", *alone] * 2
    for row in result["latency"]:
        assert row["p50"] <= row["p95"]
        assert row["threads"] >= 1
        assert row["speed_up"] > 0
        if row["name"] == f"{result['reference']} alone":
            assert row["speed_up"] == 1


@pytest.mark.nightly
def test_all_points_are_timed_on_request(folder):
    config = json.loads((folder / "config.json").read_text())
    middle = {**config["front"][0], "name": "middle"}
    config["front"].insert(1, middle)
    (folder / "config.json").write_text(json.dumps(config))
    flags = ["--batch-size", "1", "--rounds", "1"]
    assert main(["benchmark", str(folder), *flags]) == 0
    assert [bool(several) for several in latencies(folder).values()] == [True, False, True], "it is none of the usual"
    assert main(["benchmark", str(folder), *flags, "--operating-point", "all"]) == 0
    assert all(latencies(folder).values())


@pytest.mark.nightly
def test_every_batch_is_full_whatever_the_number_of_images(folder, images, tmp_path):
    rows = [{"image": image.permute(1, 2, 0).numpy()} for image in images(5, 40)]
    (tmp_path / "images").mkdir()
    Dataset.from_list(rows, features=Features({"image": ImageColumn()})).to_parquet(tmp_path / "images/train.parquet")
    model = PertinenceForImageClassification.from_pretrained(folder)
    sizes = []
    model.pool[0].register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    data = DataArguments(str(tmp_path / "images"), "train")
    benchmark(model, data, BenchmarkArguments(batch_size=[48], rounds=1, operating_point=["small"]))
    assert set(sizes) == {48}


@pytest.mark.nightly
def test_what_ran_the_experts_is_part_of_the_device(exported, tmp_path):
    for flags, device in (
        ([], "cpu"),
        (["--backend", "onnx"], "cpu, onnx"),
        (["--fold-batch-norms"], "cpu, folded"),
    ):
        copy = tmp_path / device
        shutil.copytree(exported.folder, copy)
        assert main(["benchmark", str(copy), "--batch-size", "8", "--rounds", "1", "--device", "cpu", *flags]) == 0
        assert {entry.device for entries in latencies(copy).values() for entry in entries} == {device}
    values = json.loads((copy / "config.json").read_text())
    values["experts"][1]["exports"] = None
    (copy / "config.json").write_text(json.dumps(values))
    assert main(["benchmark", str(copy), "--batch-size", "8", "--rounds", "1", "--backend", "onnx"]) == 0
    assert "cpu, onnx and torch" in {entry.device for entries in latencies(copy).values() for entry in entries}


def test_a_budget_of_milliseconds_goes_by_what_was_measured(folder):
    values = json.loads((folder / "config.json").read_text())
    for entry, slow in zip(values["front"], (1, 2), strict=True):
        entry["latency"] = [
            {"device": device, "batch_size": size, "milliseconds": slow * ms, "low": ms, "high": ms, "later": 0}
            for device, size, ms in (("cpu", 1, 4.0), ("cpu", 32, 1.0), ("NVIDIA H200", 32, 0.1))
        ]
    (folder / "config.json").write_text(json.dumps(values))
    model = PertinenceForImageClassification.from_pretrained(folder)
    with pytest.raises(PertinenceError, match="device='cpu', batch_size=32.*: give device=... "):
        model.set_budget(latency_ms=3.0)
    assert model.set_budget(latency_ms=4.0, batch_size=1).name == "small"
    assert model.set_budget(latency_ms=4.0, device="cpu", batch_size=32).name == "chain"
    assert model.set_budget(latency_ms=0.15, device="NVIDIA H200").name == "small"
    with pytest.raises(PertinenceError, match="at most 3 ms.*'small', costs 4"):
        model.set_budget(latency_ms=3.0, batch_size=1)
    with pytest.raises(PertinenceError, match="not measured for that, only for .*run `pertinence benchmark`"):
        model.set_budget(latency_ms=3.0, batch_size=64)
    model.save_pretrained(folder / "again")
    assert latencies(folder / "again") == latencies(folder)


def test_without_a_benchmark_a_budget_goes_by_the_search(folder):
    model = PertinenceForImageClassification.from_pretrained(folder)
    with pytest.raises(PertinenceError, match="no operating point has a latency: run `pertinence benchmark`"):
        model.set_budget(latency_ms=1.0)
    costs = [{**point.select.costs, "latency": 1.0 + i} for i, point in enumerate(model.front)]
    timed = [
        replace(point, select=replace(point.select, costs=spent, objective="latency"))
        for point, spent in zip(model.front, costs, strict=True)
    ]
    assert Front(timed, model.front.expert_names).choose(latency_ms=1.5).name == "small"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--operating-point", "free"], "no operating point 'free'"),
        (["--dataset", "no/where", "--split", "test"], "cannot be loaded"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(folder, capsys, flags, words):
    assert main(["benchmark", str(folder), *flags]) == 1
    assert words in capsys.readouterr().err


def test_no_batch_size_is_refused():
    with pytest.raises(PertinenceError, match="batch_size must be at least 1"):
        BenchmarkArguments(batch_size=[])
