"""The command line in processes of its own: what it prints, where it fails, and that it asks nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pertinence import PertinenceConfig
from pertinence.commands.main import main, parse
from pertinence.search.settings import anchored


SETTINGS = ["--population", "6", "--generations", "2", "--epochs", "2", "--device", "cpu"]


def run(*arguments, cwd: Path, ok: bool = True, show_progress: bool = False) -> subprocess.CompletedProcess:
    """Run `pertinence` in `cwd`, with nothing to read from."""
    finished = subprocess.run(
        [sys.executable, "-m", "pertinence", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "0" if show_progress else "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (finished.returncode == 0) is ok, finished.stderr
    return finished


@pytest.fixture(scope="module")
def data(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    digits[1].to_parquet(folder / "validation.parquet")
    digits[2].to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def searched(data, digit_experts, tmp_path_factory) -> Path:
    """A folder in which a search was run, with the relative paths that people type."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "experts").symlink_to(digit_experts[0].parent)
    (folder / "data").symlink_to(data)
    experts = [f"experts/{expert.name}" for expert in digit_experts]
    finished = run(
        "search", "--experts", *experts[:2], "--experts", experts[2], "--dataset", "data", "--split", "validation",
        "--report-split", "test", "--output-dir", "runs/digits", *SETTINGS, cwd=folder,
        show_progress=True,
    )  # fmt: skip
    assert "Saved to runs/digits" in finished.stdout
    assert "Predictions of test_vit" in finished.stderr  # progress goes where it belongs
    return folder


def test_search_writes_a_run(searched):
    record = json.loads((searched / "runs/digits/search_result.json").read_text())
    assert record["settings"]["population"] == 6
    assert [expert["name"] for expert in record["settings"]["experts"]] == [
        "test_efficientnet",
        "test_vit",
        "test_resnet",
    ]


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
    for row in ("oracle", "test_resnet", "fastest", "max-softmax chain of 2", "cascade without search", "vs mix"):
        assert row in finished.stdout


def test_evaluate_one_operating_point_on_some_images(searched, data, tmp_path):
    run("evaluate", searched / "runs/digits", "--dataset", data, "--split", "test", "--operating-point", "fastest",
        "--limit", "50", "--output-dir", "out", cwd=tmp_path)  # fmt: skip
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [(point["name"], point["samples"]) for point in evaluation["front"]] == [("fastest", 50)]


def test_info_loads_no_weights(searched, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_bytes((searched / "runs/digits/config.json").read_bytes())
    shown = run("info", "run", cwd=tmp_path).stdout
    for word in ("3 experts, 10 labels", "test_resnet", "sha256:", "fastest", "Default operating point"):
        assert word in shown


def test_info_of_experts_that_are_in_no_file(searched, tmp_path, capsys):
    config = json.loads((searched / "runs/digits/config.json").read_text())
    config["experts"][0]["repo_id"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["info", str(tmp_path)]) == 0
    assert "no file" in capsys.readouterr().out


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
        ({"split": ["valid"]}, "error: data set 'data' has no split 'valid'"),
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


@pytest.mark.parametrize("command", [["info"], ["evaluate", "--dataset", "data", "--split", "test"]])
def test_other_models_are_told_apart(command, digit_experts, capsys):
    assert main([command[0], str(digit_experts[0]), *command[1:]]) == 1
    assert "is not a pertinence model" in capsys.readouterr().err


def test_empty_folder_is_one_line(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_unknown_flag_exits_with_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["search", "--colour", "red"])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("flags", "mixing"),
    [
        ([], None),
        (["--mixing"], True),
        (["--no-mixing"], False),
        (["--no_mixing"], False),
        (["--mixing", "false"], False),
    ],
)
def test_optional_booleans_are_flags(flags, mixing):
    assert parse(["search", *flags])[1][2].mixing is mixing


@pytest.mark.parametrize("command", ["search", "evaluate", "calibrate", "push", "info", "demo"])
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "usage: pertinence" in capsys.readouterr().out


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


def test_experts_from_the_hub_are_written_at_the_commit_that_was_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    entries = [("user/small", "a" * 40), (str(tmp_path / "local"), f"sha256:{'b' * 64}"), ("user/twice", "c" * 40),
               ("user/twice", "d" * 40)]  # fmt: skip
    known = {"gmacs": 1.0, "parameters": 1, "features": 1, "transform": {"library": "timm", "size": [8, 8]}}
    pool = [{"name": f"{i}", "repo_id": repo, "revision": at, **known} for i, (repo, at) in enumerate(entries)]
    stem = {"name": "stem", "repo_id": "user/stem", "revision": "e" * 40, **known}
    config = PertinenceConfig(experts=pool, stem=stem)
    experts = [
        "user/small",
        "user/twice@v1",
        "local",
        {"repo_id": "user/small", "revision": "main", "label_map": [1, 0]},
        {"repo_id": "local", "name": "mine"},
    ]
    settings = anchored({"experts": experts, "stem": "user/stem@main", "dataset": "user/data", "seed": 3}, config)
    assert settings == {
        "experts": [
            f"user/small@{'a' * 40}",
            "user/twice@v1",
            str(tmp_path / "local"),
            {"repo_id": "user/small", "revision": "a" * 40, "label_map": [1, 0]},
            {"repo_id": str(tmp_path / "local"), "name": "mine"},
        ],
        "stem": f"user/stem@{'e' * 40}",
        "dataset": "user/data",
        "seed": 3,
    }


def test_finished_search_has_nothing_to_do(searched, monkeypatch, capsys):
    config, record = (searched / "runs/digits" / name for name in ("search.yaml", "search_result.json"))
    written = record.stat().st_mtime_ns
    monkeypatch.chdir(searched)
    assert main(["search", "--config", str(config)]) == 0
    assert capsys.readouterr().out.endswith(
        "runs/digits holds the result of this very search: nothing to do (--no-resume searches again)\n"
    )
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


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("populatoin: 6", "has unknown settings: populatoin"),
        ("- a\n- b", "must hold settings"),
        ("a: [", "cannot be read"),
        ("population: [1, 2]", "population must be at least 2, a whole number"),
        ("learning_rate: [1]", "a setting is of the wrong type"),
        ("population: 1", "population must be at least 2"),
        ("seed: 2020-13-45", "cannot be read"),
        ("seed: !!bool maybe", "cannot be read"),
        ("seed: !!timestamp foo", "cannot be read"),
        ("seed: !!int ''", "cannot be read"),
        (f"seed: {'9' * 5000}", "cannot be read"),
        ("experts: &a [*a]", "aliases"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nexperts: [*b, *b]", "aliases"),
        ("experts: [" + "x, " * 300_000 + "x]", "more than 524,288 bytes"),
    ],
    ids=lambda text: text[:30],
)
def test_bad_config_gets_one_sentence(text, sentence, tmp_path, capsys):
    (tmp_path / "search.yaml").write_text(text)
    assert main(["search", "--config", str(tmp_path / "search.yaml"), "--output-dir", str(tmp_path / "run")]) == 1
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_one_expert_in_a_config_is_not_spelt(data, tmp_path, capsys):
    (tmp_path / "search.yaml").write_text(f"experts: user/resnet8\ndataset: {data}\nsplit: validation\n")
    assert main(["search", "--config", str(tmp_path / "search.yaml"), "--output-dir", str(tmp_path / "run")]) == 1
    assert "experts come as a list of at least two, got one str" in capsys.readouterr().err.splitlines()[-1]


def test_search_needs_experts_or_a_table(tmp_path, capsys):
    for flags in ([], ["--predictions", "p.npz"], ["--predictions", "p.npz", "--costs", "c.json", "--experts", "a"]):
        assert main(["search", "--output-dir", str(tmp_path / "run"), *flags]) == 1
        assert capsys.readouterr().err.startswith("error: ")


def test_evaluation_does_not_write_into_a_model(searched, data, capsys):
    arguments = ["--dataset", str(data), "--split", "test", "--limit", "20"]
    assert main(["evaluate", str(searched / "runs/digits"), *arguments, "--output-dir",
                 str(searched / "runs/digits")]) == 1  # fmt: skip
    assert "holds a model" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("pertinence ")


def test_a_terminal_without_signs_loses_nothing(searched, tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "pertinence", "evaluate", "runs/digits", "--dataset", "data", "--split", "test",
         "--output-dir", str(tmp_path / "measured")],
        cwd=searched, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert b" ? " in finished.stdout  # a plus-minus sign elsewhere
    assert (tmp_path / "measured" / "evaluation.json").is_file()


def test_whoever_has_read_enough_gets_no_error(searched):
    with subprocess.Popen(
        [sys.executable, "-m", "pertinence", "info", "runs/digits", "--json"],
        cwd=searched, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


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


def test_evaluation_on_the_search_images_is_called_out(searched, data, capsys):
    assert main(["evaluate", str(searched / "runs/digits"), "--dataset", str(data), "--split", "validation"]) == 0
    assert "was searched on these very images" in capsys.readouterr().out
