"""`pertinence export` in a process of its own, and what `push`, `info`, `evaluate` and `benchmark` make of it."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
from command_line import documented, run
from huggingface_hub import HfApi

from pertinence import PertinenceError
from pertinence.commands.main import main
from pertinence.evaluation.exports import export_onnx


@pytest.fixture(scope="module")
def exported(searched, tmp_path_factory) -> Path:
    """The folder of the searched model with its exported experts, which was written in place."""
    work = tmp_path_factory.mktemp("exported")
    for name in ("experts", "data"):
        (work / name).symlink_to(searched / name)
    shutil.copytree(searched / "runs", work / "runs")
    finished = run("export", "runs/digits", cwd=work)
    assert "Saved to runs/digits" in finished.stdout
    assert finished.stdout.splitlines()[-1] == "Next: pertinence benchmark runs/digits --backend onnx"
    return work / "runs/digits"


def entries_of(folder: Path) -> list[dict]:
    return json.loads((folder / "config.json").read_text())["experts"]


def test_by_default_it_goes_into_the_folder_of_the_model(exported, searched):
    for index, entry in enumerate(entries_of(exported)):
        (export,) = entry["exports"]
        assert export["file"] == f"experts/{index}/onnx/model.onnx"
        assert export["agreement"]["same_answers"] == 1
        assert 256 <= export["agreement"]["images"] <= 512
    plain = searched / "runs/digits"
    before = {path.relative_to(plain).as_posix() for path in plain.rglob("*") if path.is_file()}
    after = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert after - before == {f"experts/{index}/onnx/model.onnx" for index in range(3)}
    assert before <= after, "the record of the search stays"


def said(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> str:
    """What the command prints, or its error, in this process."""
    capsys.readouterr()
    assert main([*map(str, words)]) == status
    printed = capsys.readouterr()
    return printed.err if status else printed.out


@pytest.mark.nightly
def test_of_a_model_on_the_hub_into_a_folder_and_to_the_hub(exported, searched, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(searched)
    said(capsys, "push", "runs/digits", "tester/plain-digits", "--save-experts", "--token", hub.token)
    words = ["export", "tester/plain-digits", "--dataset", "data", "--split", "validation", "--json"]
    refused = said(capsys, *words, status=1)
    assert "tester/plain-digits is not a folder here: give --output-dir or --push-to-hub for the result" in refused
    places = ["--output-dir", tmp_path / "out", "--push-to-hub", "tester/exported-digits", "--token", hub.token]
    printed = json.loads(run(*words, *places, cwd=searched).stdout)
    assert set(printed) == documented("export")
    assert printed["model"] == "tester/exported-digits"
    assert printed["experts"] == {entry["name"]: entry["exports"] for entry in entries_of(tmp_path / "out")}
    assert graphs(hub.files("tester/exported-digits")) == {f"experts/{index}/onnx/model.onnx" for index in range(3)}
    assert figures(capsys, "tester/exported-digits", "onnx") == figures(capsys, exported, "torch")


def graphs(files: dict[str, bytes]) -> set[str]:
    return {path for path in files if path.endswith(".onnx")}


def figures(capsys: pytest.CaptureFixture[str], model: object, backend: str) -> list[dict]:
    """The front as `evaluate` measures it with a backend."""
    words = ["--dataset", "data", "--split", "test", "--backend", backend, "--json"]
    return json.loads(said(capsys, "evaluate", model, *words))["front"]


@pytest.fixture
def work(exported, monkeypatch) -> Path:
    """The current folder, in which `runs/digits` is the exported model."""
    monkeypatch.chdir(exported.parents[1])
    return exported.parents[1]


@pytest.mark.nightly
def test_evaluated_with_it_a_model_has_the_same_figures(work, capsys):
    assert figures(capsys, "runs/digits", "onnx") == figures(capsys, "runs/digits", "torch")


@pytest.mark.nightly
def test_evaluated_with_folded_batch_norms_too(work, capsys):
    words = ["evaluate", "runs/digits", "--dataset", "data", "--split", "test", "--fold-batch-norms", "--json"]
    assert json.loads(said(capsys, *words))["front"] == figures(capsys, "runs/digits", "torch")
    refused = said(capsys, *words, "--backend", "onnx", status=1)
    assert "fold_batch_norms is of torch: backend='onnx' folds batch norms itself, so leave it out" in refused


def test_timed_with_it(work, exported, capsys):
    words = ["benchmark", "runs/digits", "--backend", "onnx", "--rounds", "1", "--batch-size", "1", "--json"]
    names = {row["name"] for row in json.loads(said(capsys, *words))["latency"]}
    assert {f"{entry['name']} alone" for entry in entries_of(exported)} < names


def test_info_names_the_files(work, exported, capsys):
    shown = said(capsys, "info", "runs/digits", "--verbose")
    for index, entry in enumerate(entries_of(exported)):
        size = (exported / f"experts/{index}/onnx/model.onnx").stat().st_size
        (line,) = [line for line in shown.splitlines() if line.endswith(f"experts/{index}/onnx/model.onnx")]
        images = entry["exports"][0]["agreement"]["images"]
        assert line.split() == [
            *(entry["name"], "float32", "100.00", "%", str(images), f"{size / 1e6:.3g}", "MB"),
            f"experts/{index}/onnx/model.onnx",
        ]
    listed = json.loads(said(capsys, "info", "runs/digits", "--json"))["exports"]
    assert [one["expert"] for one in listed] == [entry["name"] for entry in entries_of(exported)]
    assert all(one["bytes"] == (exported / one["file"]).stat().st_size for one in listed)


@pytest.mark.nightly
def test_push_exports_first(searched, hub, tmp_path, capsys, monkeypatch):
    for name in ("experts", "data"):
        (tmp_path / name).symlink_to(searched / name)
    shutil.copytree(searched / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    push = ["push", "runs/digits", "tester/pushed-digits", "--save-experts", "--export", "onnx", "--token", hub.token]
    said(capsys, *push)
    assert graphs(hub.files("tester/pushed-digits")) == {f"experts/{index}/onnx/model.onnx" for index in range(3)}
    assert all(entry["exports"] for entry in json.loads(hub.files("tester/pushed-digits")["config.json"])["experts"])
    assert "search_result.json" in hub.files("tester/pushed-digits")


def test_push_refuses_what_it_cannot_export_and_pushes_nothing(searched, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.requests.clear()
    refused = said(capsys, "push", "tester/model", "tester/never", "--export", "onnx", "--token", hub.token, status=1)
    assert "tester/model is not a folder here, and --export writes into the folder of the model" in refused
    shutil.copytree(searched / "runs/digits", "run")
    Path("run/search.yaml").unlink()
    refused = said(capsys, "push", "run", "tester/never", "--export", "onnx", "--token", hub.token, status=1)
    assert "run names no data set in search.yaml" in refused
    assert "(pertinence export run --dataset ... --split ...)" in refused
    assert not [request for request in hub.requests if request.method == "POST"]


def test_without_a_data_set_one_sentence(searched, tmp_path, capsys):
    folder = shutil.copytree(searched / "runs/digits", tmp_path / "run")
    (folder / "search.yaml").unlink()
    (line,) = said(capsys, "export", folder, status=1).splitlines()
    assert line.startswith(f"error: {folder} names no data set in search.yaml: give one of at least 256 real images")
    assert not list(folder.rglob("*.onnx"))


def test_what_is_given_replaces_what_search_yaml_names(searched, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(searched)
    words = ["export", "runs/digits", "--output-dir", tmp_path / "out"]
    assert "got 7: give a larger data set" in said(capsys, *words, "--limit", "7", status=1)
    assert "'elsewhere'" in said(capsys, *words, "--split", "elsewhere", status=1)
    assert not any(tmp_path.iterdir())


@pytest.mark.nightly
def test_images_are_taken_from_all_of_a_data_set(searched, digits, tmp_path):
    several = datasets.concatenate_datasets([digits[1]] * 3).cast_column("image", datasets.Image(decode=False))
    assert len(several) > 600
    broken = several.select([0]).map(lambda row: {"image": {"bytes": b"no image", "path": None}})
    images = datasets.concatenate_datasets([several, broken]).cast_column("image", datasets.Image())
    with pytest.raises(PertinenceError, match="cannot be decoded|not an image|no image"):
        export_onnx(searched / "runs/digits", tmp_path / "out", images)


def test_of_a_model_that_cannot_be_read_the_cause_is_said(hub, tmp_path, capsys):
    words = ["--output-dir", tmp_path / "out"]
    assert "there is no folder ./typo here" in said(capsys, "export", "./typo", *words, status=1)
    assert "neither a local folder nor a repository" in said(capsys, "export", "tester/nothing", *words, status=1)
    HfApi(token=hub.token).create_repo("tester/bare")
    refused = said(capsys, "export", "tester/bare", "--revision", "missing", *words, status=1)
    assert "tester/bare has no revision 'missing' on the Hub" in refused
    assert "tester/bare names no data set in search.yaml" in said(capsys, "export", "tester/bare", *words, status=1)


def test_options_without_the_one_that_they_belong_to_are_refused(searched, capsys):
    for option in ("--save-experts", "--private"):
        assert "give --push-to-hub, or leave them out" in said(
            capsys, "export", searched / "runs/digits", option, status=1
        )
    words = ["push", searched / "runs/digits", "tester/never", "--trust-remote-code"]
    assert "give --export, or leave it out" in said(capsys, *words, status=1)


def test_of_too_few_images_one_sentence_and_nothing_is_written(searched, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(searched)
    words = ["--dataset", "data", "--split", "test", "--limit", "255", "--output-dir", tmp_path / "out"]
    (line,) = said(capsys, "export", "runs/digits", *words, status=1).splitlines()
    assert "is compared with torch on at least 256 images, got 255: give a larger data set" in line
    assert not any(tmp_path.iterdir())
    assert not list((searched / "runs/digits").rglob("*.onnx"))
