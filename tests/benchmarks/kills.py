"""Kills a search at random moments and starts it again: every front must be the one of a search never killed.

uv run python tests/benchmarks/kills.py --kills 20
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
COSTS = {"resnet8": 0.01265, "resnet20": 0.04121, "resnet56": 0.12684}
SETTINGS = ["--population", "16", "--generations", "6", "--recipe", "both", "--epochs", "5", "--device", "cpu"]


def command(folder: Path, output: Path) -> list[str]:
    return [
        sys.executable, "-m", "pertinence", "search", "--predictions", str(ZOO / "predictions/cifar10-logits.npz"),
        "--costs", str(folder / "costs.json"), "--split", "validation", "--report-split", "test", "--output-dir",
        str(output), *SETTINGS,
    ]  # fmt: skip


def front(output: Path) -> dict:
    record = json.loads((output / "search_result.json").read_text())
    record.pop("run")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "costs.json").write_text(json.dumps(COSTS))
        start = time.perf_counter()
        subprocess.run(command(folder, folder / "whole"), check=True, **quiet)
        seconds = time.perf_counter() - start
        expected, same, moments = front(folder / "whole"), 0, []
        for kill in range(options.kills):
            output = folder / f"killed-{kill}"
            # From the first import to the last file.
            moment = rng.uniform(0.2, 1.0) * seconds
            process = subprocess.Popen(command(folder, output), **quiet)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            state = output / "search_state"
            stood = sorted(path.stem for path in state.glob("*.safetensors")) if state.is_dir() else []
            subprocess.run(command(folder, output), check=True, **quiet)
            same += front(output) == expected
            moments.append(f"{moment:.1f} s ({', '.join(stood) or 'no state'})")
        print(f"killed after {'; '.join(moments)}")
        print(f"{same} of {options.kills} fronts are identical to that of the search that was never killed")


if __name__ == "__main__":
    main()
