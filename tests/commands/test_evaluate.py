"""`pertinence evaluate`: what it measures, prints and writes."""

import json
import shutil

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


def test_evaluation_on_the_search_images_is_called_out(searched, data, capsys, caplog):
    assert main(["evaluate", str(searched / "runs/digits"), "--dataset", str(data), "--split", "validation"]) == 0
    assert caplog.text.count("was searched on these very images") == 1
    assert "was searched on these very images" not in capsys.readouterr().out


def test_wrong_images_are_told_before_experts_are_loaded(searched, data, tmp_path, capsys):
    shutil.copytree(searched / "runs/digits", tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    for expert in config["experts"]:
        expert["repo_id"] = str(tmp_path / "gone")
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    words = ["evaluate", str(tmp_path / "run"), "--dataset", str(data), "--split"]
    assert main([*words, "held"]) == 1
    assert "has no split 'held'" in capsys.readouterr().err
    assert main([*words, "test", "--operating-point", "slowest"]) == 1
    assert "there is no operating point 'slowest'" in capsys.readouterr().err
    assert main([*words, "test"]) == 1
    assert "gone" in capsys.readouterr().err


def test_images_that_trained_the_experts_are_called_out(searched, digits, tmp_path, capsys, caplog):
    digits[0].to_parquet(tmp_path / "train.parquet")
    words = ["evaluate", str(searched / "runs/digits"), "--dataset", str(tmp_path), "--split", "train"]
    assert main([*words, "--output-dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    sentence = (
        "experts look trained on these images (or these are easier), and then the figures say nothing about others."
    )
    assert (caplog.text.count(sentence), said.out.count(sentence)) == (1, 0)
    assert "Against it: " in said.out
    (warning,) = json.loads((tmp_path / "out/evaluation.json").read_text())["warnings"]
    assert warning.endswith(sentence)


def test_another_evaluation_is_replaced_aloud(searched, data, tmp_path, caplog):
    words = ["evaluate", str(searched / "runs/digits"), "--dataset", str(data), "--split", "test"]
    sentence = "was that of another evaluation, which is replaced."
    for limit, is_told in (("40", False), ("40", False), ("50", True)):
        assert main([*words, "--limit", limit, "--output-dir", str(tmp_path / "out")]) == 0
        assert (sentence in caplog.text) is is_told


def test_groups_of_a_column_are_compared(searched, digits, tmp_path, capsys):
    images = digits[2].select(range(60))
    images.add_column("camera", ["old", "new", "new"] * 20).to_parquet(tmp_path / "test.parquet")
    words = ["evaluate", str(searched / "runs/digits"), "--dataset", str(tmp_path), "--split", "test"]
    assert main([*words, "--group-column", "camera", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {group["name"]: group["images"] for group in values["by_group"]["groups"]} == {"old": 20, "new": 40}
    assert sum(group["images"] for group in values["by_class"]["groups"]) == 60
    assert main([*words, "--group-column", "lens"]) == 1
    assert "there is no column 'lens' to group images by; the columns are" in capsys.readouterr().err
