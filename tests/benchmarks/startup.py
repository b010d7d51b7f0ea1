"""CPU time until the console script has shown its version and its helps; compiled bytecode, the least of five runs.

python tests/benchmarks/startup.py
"""

import os
import resource
import subprocess
import sys
from pathlib import Path


BOUND = 0.6
"""Seconds of CPU (user and system) that each may take."""
COMMANDS = (["--version"], ["--help"], ["search", "--help"], ["search", "--recipe", "paper", "--help"])


def cpu_seconds(arguments: list[str], runs: int = 5) -> float:
    """The least CPU time of several runs of the console script beside this interpreter."""
    script = Path(sys.executable).with_name("pertinence")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    spent = []
    for _ in range(runs + 1):  # the first compiles
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([script, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent[1:])


if __name__ == "__main__":
    for arguments in COMMANDS:
        print(f"{cpu_seconds(arguments):.2f} s of at most {BOUND} s: pertinence {' '.join(arguments)}")
