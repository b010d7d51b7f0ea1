"""The examples without a connection: each ends with one sentence, and with exit code 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STUDENT = "{name: student, architecture: resnet18, epochs: 1}"
HUB, DATA = "the Hub cannot be reached: connect and load it once", "check the path, the connection and HF_HUB_OFFLINE"
COMMANDS = {
    "search_from_hub": ([], DATA),
    "label_free": ([], DATA),
    "three_resolutions": ([], DATA),
    "distill_experts": (["--teacher", "user/large", "--dataset", "user/images", "--students", STUDENT], DATA),
    "classify": (["image.png"], "Check your internet connection"),
    "fine_tune_experts": ([], "Check your internet connection"),
    "streaming": (["image.png"], HUB),
}
"""Arguments of each, and a part of what it says."""
FORK = """
import json, os, runpy, sys
import datasets, timm, torch, transformers, pertinence  # once for all
ends = {}
for path, arguments in json.loads(sys.argv[1]):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 2)
        sys.argv = [path, *arguments]
        runpy.run_path(path, run_name="__main__")
        sys.exit()
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    ends[path] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and messages of every example by its path, with an empty cache."""
    folder = tmp_path_factory.mktemp("offline")
    Image.new("RGB", (40, 40)).save(folder / "image.png")
    commands = [(str(EXAMPLES / f"{name}.py"), arguments) for name, (arguments, _) in COMMANDS.items()]
    finished = subprocess.run(
        [sys.executable, "-c", FORK, json.dumps(commands)],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_says_what_it_could_not_reach(ends, name):
    code, said = ends[str(EXAMPLES / f"{name}.py")]
    assert code == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: ")
    assert COMMANDS[name][1] in said.splitlines()[-1]
