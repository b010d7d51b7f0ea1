"""The command line in a process of its own, and the settings of a search that is over soon."""

import os
import subprocess
import sys
from pathlib import Path


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
