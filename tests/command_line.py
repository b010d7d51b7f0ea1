"""The command line in a process of its own, the settings of a search that is over soon, and what its page says."""

import os
import re
import subprocess
from pathlib import Path

from warm_processes import run_python


PAGE = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"
SETTINGS = ["--population", "6", "--generations", "2", "--epochs", "2", "--device", "cpu"]


def run(*arguments, cwd: Path, ok: bool = True, show_progress: bool = False) -> subprocess.CompletedProcess:
    """Run `pertinence` in `cwd`, with nothing to read from."""
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "0" if show_progress else "1"}
    finished = run_python("-m", "pertinence", *arguments, cwd=cwd, env=environment)
    assert (finished.returncode == 0) is ok, finished.stderr
    return finished


def documented(command: str) -> set[str]:
    """The keys of the JSON that the page of the command line lists for a command."""
    (row,) = re.findall(rf"^\| `{command}` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    keys = set(re.findall(r"`(\w+)`", re.split("; (?:of a search on a table|with) ", row)[0]))
    return (keys - {"evaluate"}) | documented("evaluate") if "`evaluate`" in row else keys
