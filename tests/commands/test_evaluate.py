"""`pertinence evaluate`: what it measures, prints and writes."""

import json

import pytest
from command_line import run

from pertinence.commands.main import main


@pytest.mark.parametrize("kept", ["config.json", "search_result.json"])
def test_evaluate_does_not_write_into_a_result(tmp_path, kept, capsys):
    (tmp_path / kept).write_text("{}")
    assert main(["evaluate", "nowhere", "--dataset", "x", "--split", "y", "--output-dir", str(tmp_path)]) == 1
    assert "holds a model or a search" in capsys.readouterr().err


def test_evaluate_agrees_with_the_search_from_any_folder(searched, data, tmp_path):
    finished = run("evaluate", searched / "runs/digits", "--dataset", data, "--split", "test", "--output-dir", "out",
                   cwd=tmp_path)  # fmt: skip
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    front = json.loads((searched / "runs/digits/config.json").read_text())["front"]
    assert [point["accuracy"] for point in evaluation["front"]] == [point["report"]["accuracy"] for point in front]
    assert [point["gmacs"] for point in evaluation["front"]] == [point["report"]["gmacs"] for point in front]
    for row in ("oracle", "test_resnet", "fastest", "confidence cascades", "The default point, "):
        assert row in finished.stdout


def test_evaluate_one_operating_point_on_some_images(searched, data, tmp_path):
    run("evaluate", searched / "runs/digits", "--dataset", data, "--split", "test", "--operating-point", "fastest",
        "--limit", "50", "--output-dir", "out", cwd=tmp_path)  # fmt: skip
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [(point["name"], point["samples"]) for point in evaluation["front"]] == [("fastest", 50)]


def test_evaluation_does_not_write_into_a_model(searched, data, capsys):
    arguments = ["--dataset", str(data), "--split", "test", "--limit", "20"]
    assert main(["evaluate", str(searched / "runs/digits"), *arguments, "--output-dir",
                 str(searched / "runs/digits")]) == 1  # fmt: skip
    assert "holds a model" in capsys.readouterr().err


def test_evaluation_on_the_search_images_is_called_out(searched, data, capsys):
    assert main(["evaluate", str(searched / "runs/digits"), "--dataset", str(data), "--split", "validation"]) == 0
    assert "was searched on these very images" in capsys.readouterr().out
