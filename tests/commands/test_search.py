"""`pertinence search`: what it writes, where it fails, and that it asks nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from command_line import SETTINGS, run

from pertinence.commands.main import main


def test_search_writes_a_run(searched):
    record = json.loads((searched / "runs/digits/search_result.json").read_text())
    assert record["settings"]["population"] == 6
    assert [expert["name"] for expert in record["settings"]["experts"]] == [
        "test_efficientnet",
        "test_vit",
        "test_resnet",
    ]


@pytest.fixture
def bad_search(searched, tmp_path, monkeypatch, capsys):
    """A function: the one line that a search with something wrong prints; nothing may be left behind."""

    def run_main(**changes) -> str:
        arguments = {
            "--experts": ["experts/test_efficientnet", "experts/test_vit"],
            "--dataset": ["data"],
            "--split": ["validation"],
            "--output-dir": [str(tmp_path / "run")],
        }
        arguments |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        flags = [word for name, values in arguments.items() for word in (name, *map(str, values))]
        monkeypatch.chdir(searched)
        assert main(["search", *SETTINGS, *flags]) == 1
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err.splitlines()[-1]

    return run_main


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"experts": ["nobody/nothing", "experts/test_vit"]},
            "error: expert 'nothing': nobody/nothing is neither a local folder nor a repository",
        ),
        ({"experts": ["experts/test_vit"]}, "error: a pool needs at least two experts, got 1"),
        ({"experts": ["experts/test_vit"] * 2}, "error: experts 'test_vit' and 'test_vit' are the same checkpoint"),
        ({"split": ["held"]}, "error: data set 'data' has no split 'held', but "),
        ({"image_column": ["picture"]}, "error: there is no column 'picture'"),
        ({"population": ["1"]}, "error: population must be at least 2"),
        ({"device": ["tpu0"]}, "error: there is no device 'tpu0': expected cpu"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(bad_search, changes, sentence):
    assert bad_search(**changes).startswith(sentence)


def test_output_folder_that_holds_something_else(bad_search, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    assert "holds something else" in bad_search(output_dir=[tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_remote_code_needs_the_flag_and_asks_nothing(zoo, tmp_path):
    finished = run("search", "--experts", zoo / "cifar10/resnet8", zoo / "cifar10/resnet20", "--dataset",
                   zoo / "cifar10/data", "--split", "test", "--output-dir", "run", cwd=tmp_path, ok=False)  # fmt: skip
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: expert 'resnet8' needs code of its own")
    assert "--trust-remote-code" in last
    assert "[y/N]" not in finished.stdout + finished.stderr


def test_settings_beside_a_result_run_again_as_they_are(searched, tmp_path, monkeypatch):
    import yaml

    config = searched / "runs/digits/search.yaml"
    values = yaml.safe_load(config.read_text())
    assert values["population"] == 6
    assert values["report_split"] == "test"
    monkeypatch.chdir(tmp_path)  # where the paths that were typed lead nowhere
    again = tmp_path / "again"
    # Whether code is run whoever runs it says, and no file for him.
    assert main(["search", "--config", str(config), "--output-dir", str(again), "--trust-remote-code"]) == 0
    records = [json.loads((folder / "search_result.json").read_text()) for folder in (searched / "runs/digits", again)]
    for record in records:
        record.pop("run")
    assert records[0] == records[1]
    assert yaml.safe_load((again / "search.yaml").read_text()) == values | {"output_dir": str(again)}


def test_finished_search_has_nothing_to_do(searched, monkeypatch, capsys):
    config, record = (searched / "runs/digits" / name for name in ("search.yaml", "search_result.json"))
    written = record.stat().st_mtime_ns
    monkeypatch.chdir(searched)
    assert main(["search", "--config", str(config)]) == 0
    said, following = capsys.readouterr().out.splitlines()
    assert said.endswith(
        "runs/digits holds the result of this very search: nothing to do (--no-resume searches again)"
    )
    assert following.startswith("Next: pertinence info ")
    assert record.stat().st_mtime_ns == written
    assert main(["search", "--config", str(config), "--seed", "7"]) == 1
    assert "holds another search (its seed is 0, not 7)" in capsys.readouterr().err
    assert main(["search", "--config", str(config), "--no-resume"]) == 0
    assert "Saved to" in capsys.readouterr().out
    assert record.stat().st_mtime_ns > written


def test_flags_replace_what_a_config_says(searched, tmp_path, monkeypatch):
    (tmp_path / "search.yaml").write_text(
        "experts: [nobody/nothing]\ndataset: data\nsplit: validation\nreport-split: test\n"
        f"output_dir: {tmp_path}/run\n"
        "population: 6\ngenerations: 1\nlearning_rate: 1e-3\nbaselines: false\n"
    )
    monkeypatch.chdir(searched)
    experts = ["--experts", "experts/test_efficientnet", "experts/test_vit"]
    assert main(["search", "--config", str(tmp_path / "search.yaml"), *experts, "--seed", "5"]) == 0
    settings = json.loads((tmp_path / "run/search_result.json").read_text())["settings"]
    assert (settings["population"], settings["seed"], len(settings["experts"])) == (6, 5, 2)


def test_one_expert_in_a_config_is_not_spelt(data, tmp_path, capsys):
    (tmp_path / "search.yaml").write_text(f"experts: user/resnet8\ndataset: {data}\nsplit: validation\n")
    assert main(["search", "--config", str(tmp_path / "search.yaml"), "--output-dir", str(tmp_path / "run")]) == 1
    assert "experts come as a list of at least two, got one str" in capsys.readouterr().err.splitlines()[-1]


def test_search_needs_experts_or_a_table(tmp_path, capsys):
    for flags in ([], ["--predictions", "p.npz"], ["--predictions", "p.npz", "--costs", "c.json", "--experts", "a"]):
        assert main(["search", "--output-dir", str(tmp_path / "run"), *flags]) == 1
        assert capsys.readouterr().err.startswith("error: ")


def test_two_processes_predict_find_the_same_and_push_once(searched, hub, tmp_path):
    """Each classifies every other batch, without anything cached, and searches half of every generation."""
    config = searched / "runs/digits/search.yaml"
    finished = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "pertinence", "search",
            "--config", str(config), "--output-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache"),
            "--save-experts", "--push-to-hub", "tester/two-processes", "--token", hub.token,
        ],
        cwd=searched, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    alone, together = (
        json.loads((folder / "search_result.json").read_text())
        for folder in (searched / "runs/digits", tmp_path / "run")
    )
    assert (alone.pop("run")["processes"], together.pop("run")["processes"]) == (1, 2)
    assert together == alone
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["front"] == alone["front"]
    assert len(hub.commits("tester/two-processes")) == 2  # its creation, and one
    assert json.loads(hub.files("tester/two-processes")["config.json"])["front"] == alone["front"]


@pytest.fixture(scope="session")
def nameless(digits, tmp_path_factory) -> Path:
    """Images whose labels have no names."""
    folder = tmp_path_factory.mktemp("nameless")
    for name, part in zip(("validation", "test"), digits[1:], strict=True):
        part.cast_column("label", datasets.Value("int64")).to_parquet(folder / f"{name}.parquet")
    return folder


def test_a_warning_is_printed_once_and_on_standard_error(searched, nameless, tmp_path):
    experts = ["--experts", searched / "experts/test_vit", searched / "experts/test_resnet"]
    images = ["--dataset", nameless, "--label-column", "label"]
    shared = [*experts, *images, "--cache-dir", tmp_path / "cache", "--device", "cpu"]
    doubt, alias = "have no names: the same order is assumed.", "calls its split 'val' 'validation'."
    split = ["--split", "val", "--report-split", "test", "--output-dir", "run"]
    found = run("search", *shared, *split, cwd=tmp_path)
    warnings = json.loads((tmp_path / "run/search_result.json").read_text())["report"]["warnings"]
    for sentence in (doubt, alias, *warnings):
        assert (found.stderr.count(sentence), found.stdout.count(sentence)) == (1, 0), sentence
    assert "Warning:" not in found.stdout
    assert "taken from the cache" not in found.stderr
    assert found.stdout.splitlines()[-2:] == [
        'In Python: model = PertinenceForImageClassification.from_pretrained("run")',
        f"Next: pertinence benchmark run --dataset {nameless} --split val --label-column label",
    ]
    again = run("search", *shared, *split[:-1], "again", "--seed", "1", cwd=tmp_path)
    assert re.findall(r"(\d+) of (\d+) predictions are taken from the cache", again.stderr) == [("2794", "2794")]
    measured = run("evaluate", "run", *images, "--split", "val", "--cache-dir", tmp_path / "cache", cwd=tmp_path)
    for sentence in (doubt, alias, "was searched on these very images"):
        assert (measured.stderr.count(sentence), measured.stdout.count(sentence)) == (1, 0), sentence
    advice = run("advise", *shared, "--split", "val", cwd=tmp_path)
    for sentence in (doubt, alias):
        assert (advice.stderr.count(sentence), advice.stdout.count(sentence)) == (1, 0), sentence


def test_what_leads_nowhere_is_told_before_anything_is_loaded(bad_search, searched, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(searched / "experts/test_vit", damaged)
    (damaged / "model.safetensors").write_bytes(b"")
    nowhere = {"dataset": ["nowhere/at-all"], "experts": [damaged, "experts/test_vti"]}
    assert bad_search(**nowhere).startswith("error: expert 'test_vti': experts/test_vti is neither a local folder nor")
    pool = [damaged, "experts/test_vit"]
    stemmed = bad_search(recipe=["paper"], stem=["experts/stm"], **nowhere | {"experts": pool})
    assert stemmed.startswith("error: expert 'stm': experts/stm is neither a local folder nor")
    assert "'nowhere/at-all' cannot be loaded" in bad_search(**nowhere | {"experts": pool})
    assert "no split 'held'" in bad_search(split=["held"], experts=[damaged, "experts/test_vit"])
    assert "no column 'picture'" in bad_search(image_column=["picture"], experts=[damaged, "experts/test_vit"])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("precious")
    assert "holds something else" in bad_search(output_dir=[tmp_path / "thesis"], **nowhere)
