"""`--json`: one object with the keys that the documentation lists, and nothing else on standard output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
from command_line import documented
from timm.models import save_for_hf

from pertinence.commands.main import main


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> list[str]:
    """Flags for a table of predictions of two models on 300 images."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    scores = {
        name: rng.normal(size=(300, 5)) + sure * np.eye(5)[labels] for name, sure in (("small", 1.5), ("large", 3))
    }
    np.savez(folder / "table.npz", label=labels, **scores)
    (folder / "costs.json").write_text(json.dumps({"small": 1.0, "large": 4.0}))
    return ["--predictions", str(folder / "table.npz"), "--costs", str(folder / "costs.json")]


@pytest.fixture(scope="module")
def run(table, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "run"
    assert main(["search", *table, "--output-dir", str(folder)]) == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_search_prints_the_same_when_it_is_finished(table, tmp_path, capsys):
    words = ["search", *table, "--output-dir", str(tmp_path / "run")]
    result = printed(capsys, *words)
    assert set(result) == documented("search")
    assert printed(capsys, *words) == result, "nothing was left to do"


def test_advise(table, capsys):
    assert set(printed(capsys, "advise", *table)) == documented("advise")


def test_convert(tmp_path, capsys):
    network, labels = timm.create_model("test_resnet", num_classes=2), {"label_names": ["cat", "dog"]}
    save_for_hf(network, str(tmp_path / "saved"), labels)
    words = ["--model-kwargs", "drop_rate=0.1", "--image-size", "48", "--output-dir", str(tmp_path / "expert")]
    result = printed(capsys, "convert", str(tmp_path / "saved"), *words)
    assert set(result) == documented("convert")
    assert (result["output_dir"], result["labels"]) == (str(tmp_path / "expert"), ["cat", "dog"])
    assert result["model_args"]["drop_rate"] == 0.1
    assert result["preprocessing"]["input_size"] == [3, 48, 48]


def test_info_of_a_table(run, capsys):
    assert set(printed(capsys, "info", str(run))) == {"experts", "front", "operating_point"}


def test_without_it_the_text_is_short_and_verbose_prints_the_rest(run, table, tmp_path, capsys):
    capsys.readouterr()
    assert main(["search", *table, "--output-dir", str(tmp_path / "run")]) == 0
    short = capsys.readouterr().out.splitlines()
    assert short[-1] == f"Next: pertinence info {tmp_path / 'run'}"
    assert len(short) <= 2 + 8 + 1 + 3 + 2
    assert main(["search", *table, "--output-dir", str(tmp_path / "again"), "--verbose"]) == 0
    whole = capsys.readouterr().out
    assert "Area under random mixes of points" in whole
    assert "Area under random mixes of points" not in "\n".join(short)
    for words in (["info", str(run)], ["info", str(run), "--verbose"]):
        assert main(words) == 0
        assert "recipe" in capsys.readouterr().out.split() or "--verbose" not in words


def test_of_a_model(searched, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(searched)
    assert set(printed(capsys, "info", "runs/digits")) == documented("info")
    images = ["--dataset", "data", "--split", "test"]
    assert set(printed(capsys, "evaluate", "runs/digits", *images)) == documented("evaluate")
    words = ["classify", "runs/digits", "data/test.parquet", "--limit", "8", "--output", str(tmp_path / "out.csv")]
    first = printed(capsys, *words)
    assert set(first) == documented("classify")
    now = {"classified": 0, "images_per_second": None, "is_old": True}
    assert printed(capsys, *words) == {**first, **now}, "nothing was left to do"
