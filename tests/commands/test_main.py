"""The command line as a whole: how it ends, and what a terminal gets."""

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import numpy as np
import pytest

from pertinence.commands.main import main


@pytest.mark.parametrize("command", [["info"], ["evaluate", "--dataset", "data", "--split", "test"]])
def test_other_models_are_told_apart(command, digit_experts, capsys):
    assert main([command[0], str(digit_experts[0]), *command[1:]]) == 1
    assert "is not a pertinence model" in capsys.readouterr().err


def test_empty_folder_is_one_line(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 1
    said = f"error: the folder {tmp_path} holds no model: it has no config.json; give the --output-dir of a finished"
    assert capsys.readouterr().err.startswith(said)


def test_unknown_flag_exits_with_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["search", "--colour", "red"])
    assert stopped.value.code == 2


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("pertinence ")


@pytest.mark.nightly
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


@pytest.mark.nightly
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


def in_terminal(columns: int, *words: str, cwd=None) -> str:
    """What a command shows in a terminal of so many columns."""
    outer, inner = os.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen(
        [sys.executable, "-m", "pertinence", *words], cwd=cwd, stdin=subprocess.DEVNULL, stdout=inner, stderr=inner,
        env=environment,
    ):  # fmt: skip
        os.close(inner)
        shown = b""
        with suppress(OSError):  # its end, on Linux
            while read := os.read(outer, 4096):
                shown += read
    os.close(outer)
    return shown.decode().replace("\r\n", "\n")


def test_an_error_is_wrapped_in_a_terminal_and_is_one_line_elsewhere(tmp_path, capsys):
    place = str(tmp_path)
    assert main(["info", place]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) > 90
    shown = in_terminal(90, "info", place)
    assert len(shown.splitlines()) > 1
    assert all(len(part) <= 90 or " " not in part for part in shown.splitlines())
    assert " ".join(shown.split()) == line
    assert in_terminal(60, "info", place).splitlines() == [line], "a narrow terminal wraps itself"


@pytest.mark.nightly
def test_tables_fit_the_terminal(searched):
    wide = in_terminal(100, "info", "runs/digits", cwd=searched)
    narrow = in_terminal(75, "info", "runs/digits", cwd=searched)
    assert "95 % interval" in wide
    assert "95 % interval" not in narrow
    tables = [line for line in narrow.splitlines() if "  " in line or line.startswith("---")]
    assert len(tables) > 8
    assert max(map(len, tables)) <= 75
