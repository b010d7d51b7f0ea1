"""Measures `pertinence classify` on the zoo's CIFAR-10 images, repeated: speed, memory, kills, two processes.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/classify.py --images 100000 --kills 20 --json classify.json

speed: images a second of a whole run, beside the model alone on images that are decoded and in memory, in the same
batches. memory: the peak of the process at a tenth of the images and at all. kills: SIGKILL at random moments, after
which the rows must be those of a run that nobody kills. processes: two by torchrun against one, with the same rows.
Every process has one thread, and decodes by itself (--num-workers 0). What is not so ends the run with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo" / "cifar10"
EXPERTS, THRESHOLDS = ("resnet8", "resnet20", "resnet56"), (0.9, 0.95)
LAUNCHER = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
BATCH, DECODED, TURNS = 64, 2048, 3
RUN = """
import resource, sys
from pertinence.commands.main import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the same figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.images)
        found = {
            "images": options.images,
            **bench.measure_speed_and_memory(),
            **bench.measure_processes(),
            **bench.kill(options.kills, random.Random(options.seed)),
        }
    for name, value in found.items():
        print(f"{name:28} {value:,.4g}" if isinstance(value, float) else f"{name:28} {value:,}")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


class Bench:
    """A model, shards that are named again and again, and the rows of a run that nobody kills."""

    def __init__(self, folder: Path, count: int):
        from pertinence import PertinenceForImageClassification

        self.folder, self.count = folder, count
        self.shards = sorted(str(path) for path in (ZOO / "data").glob("test-*.parquet"))
        self.rows = sum(pq.read_metadata(path).num_rows for path in self.shards)
        experts = [ZOO / name for name in EXPERTS]
        self.model = PertinenceForImageClassification.from_experts(experts, THRESHOLDS, trust_remote_code=True)
        self.model.save_pretrained(folder / "model")
        self.expected = folder / "expected.parquet"

    def command(self, output: Path, count: int | None = None) -> list[str]:
        count = self.count if count is None else count
        inputs = self.shards * -(-count // self.rows)
        return [
            "classify", str(self.folder / "model"), *inputs, "--image-column", "image", "--limit", str(count),
            "--output", str(output), "--batch-size", str(BATCH), "--device", "cpu", "--trust-remote-code", "--json",
        ]  # fmt: skip

    def finish(self, words: list[str], *launcher: str) -> tuple[dict[str, Any], float, float]:
        """What a whole run prints, its peak in MiB, and its seconds."""
        start = time.perf_counter()
        finished = subprocess.run(
            [sys.executable, *(launcher or ("-c", RUN)), *words], capture_output=True, text=True, env=environment()
        )
        seconds = time.perf_counter() - start
        if finished.returncode:
            fail(finished.stderr[-3000:])
        peak = float("nan") if launcher else float(finished.stderr.split()[-1])
        return json.loads(finished.stdout), peak, seconds

    def measure_speed_and_memory(self) -> dict[str, float]:
        _, small, _ = self.finish(self.command(self.folder / "small.parquet", max(1, self.count // 10)))
        found, peak, self.seconds = self.finish(self.command(self.expected))
        check(self.expected, self.count)
        speeds = sorted(self._speed_alone() for _ in range(TURNS))
        alone = speeds[TURNS // 2]
        return {
            "images a second": found["images_per_second"],
            "the model alone": alone,
            "share of it": found["images_per_second"] / alone,
            "MiB at a tenth": small,
            "MiB at all": peak,
            "GMACs an image": found["gmacs"],
        }

    def _speed_alone(self) -> float:
        import torch

        from pertinence.data.inputs import open_inputs

        torch.set_num_threads(1)
        count = min(DECODED, self.count, self.rows)
        images = [image for _, image in open_inputs(self.shards).__getitems__(range(count))]
        batches = [images[start : start + BATCH] for start in range(0, count, BATCH)]
        self.model(batches[0])
        start = time.perf_counter()
        for batch in batches:
            self.model(batch)
        return count / (time.perf_counter() - start)

    def measure_processes(self) -> dict[str, float]:
        output = self.folder / "two.parquet"
        _, _, seconds = self.finish(self.command(output), *LAUNCHER, "-m", "pertinence")
        check_same(output, self.expected)
        return {"seconds, one process": self.seconds, "seconds, two": seconds}

    def kill(self, kills: int, rng: random.Random) -> dict[str, float]:
        output, done, again = self.folder / "killed.parquet", 0, 0
        while done < kills:
            process = subprocess.Popen(
                [sys.executable, "-m", "pertinence", *self.command(output)], env=environment(), start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                process.wait(rng.uniform(0, 1.2 * self.seconds))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                done += 1
                continue
            if process.returncode:
                fail("a run that was not killed failed")
            check_same(output, self.expected)
            again += 1
            clear(output)
        self.finish(self.command(output))
        check_same(output, self.expected)
        return {"kills": done, "whole outputs between": again + 1}


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def check(path: Path, count: int) -> None:
    if pq.read_metadata(path).num_rows != count:
        fail(f"{path} has not {count} rows")


def check_same(path: Path, expected: Path) -> None:
    """The same bits; and nothing but an output and its record is left."""
    if path.read_bytes() != expected.read_bytes():
        fail(f"{path} is not what one process writes that nobody kills")
    if path.with_name(f"{path.name}.parts").exists():
        fail(f"the parts of {path} are still there")


def clear(path: Path) -> None:
    for left in path.parent.glob(f"{path.name}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def fail(message: str) -> None:
    raise SystemExit(message)


if __name__ == "__main__":
    main()
