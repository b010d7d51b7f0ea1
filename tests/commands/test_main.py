"""The command line as a whole: how it ends, and what a terminal gets."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pertinence.commands.main import main


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


def test_a_search_needs_neither_a_console_nor_a_backend(tmp_path):
    """As when a notebook or a program without a terminal starts it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    scores = {name: rng.normal(size=(200, 5)) + sure * np.eye(5)[labels] for sure, name in ((1, "_小"), (2, "$b$"))}
    np.savez(tmp_path / "table.npz", label=labels, **scores)
    (tmp_path / "costs.json").write_text(json.dumps({"_小": 1, "$b$": 2}, ensure_ascii=False), encoding="utf-8")
    search = ["search", "--predictions", "table.npz", "--costs", "costs.json"]
    code = "import sys; sys.stdout = sys.stderr = None; from pertinence_cli import main; sys.exit(main())"
    environment = {"MPLBACKEND": "no_such_backend", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    finished = subprocess.run(
        [sys.executable, "-c", code, *search, "--output-dir", "found"], cwd=tmp_path, capture_output=True,
        env=os.environ | environment,
    )  # fmt: skip
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert {"front.png", "shares.png", "search_result.json"} <= {path.name for path in (tmp_path / "found").iterdir()}
