"""What a server bears: the reference expert alone, the default point, and the server that moves along its front.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/serving.py --model runs/cifar10 --seconds 20

Requests arrive as they do from many independent clients: at the times of a Poisson process, whether or not former ones
are answered (an open loop). First the models alone, in batches of 32 in turn. Then (a) the reference expert in the
same server and (b) the default point, which may not move: the largest rate at which p95 keeps the target and at most
one request in 200 is refused, by bisection. Last, all three at 0.8 x cost(default) / cost(cheapest allowed point)
times what (b) bears: what is refused, p95, and accuracy on labelled images of CIFAR-10.

The load comes from asyncio alone: the kept generators of open loops (k6, vegeta, wrk2) are no Python packages, and an
HTTP library takes as much time for a request as a small expert does, on the cores that the server has.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from runtime import ZOO, spread, take_turns


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from servers import free_port, serving

from pertinence import PertinenceForImageClassification, PertinenceImageProcessor
from pertinence.routing.front import Front, OperatingPoint
from pertinence.serving.arguments import ServedPointArguments
from pertinence.serving.points import ServedPoints


BATCH, TOLERATED, STEPS = 32, 0.005, 5


@dataclass
class Load:
    """What became of the requests of one run; latencies in seconds, of answers."""

    seconds: float
    statuses: Counter = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    right: int = 0
    points: Counter = field(default_factory=Counter)

    @property
    def p95(self) -> float:
        return float(np.quantile(self.latencies, 0.95)) if self.latencies else float("inf")

    @property
    def refused(self) -> float:
        return 1 - self.statuses[200] / max(1, self.statuses.total())

    def __str__(self) -> str:
        used = ", ".join(
            f"{name} {count / max(1, self.statuses[200]):.0%}" for name, count in self.points.most_common(4)
        )
        return (
            f"{self.statuses.total() / self.seconds:6.1f} requests/s: {100 * self.refused:5.2f} % refused, p50 "
            f"{1000 * float(np.median(self.latencies)):.0f} ms, p95 {1000 * self.p95:.0f} ms, "
            f"{100 * self.right / max(1, self.statuses[200]):.2f} % right; {used}"
        )


def load_files(count: int) -> tuple[list[bytes], list[int], list[str]]:
    """Image files of CIFAR-10's test split, their labels, and the names of labels."""
    table = pq.read_table(next((ZOO / "cifar10" / "data").glob("test-*.parquet")))
    rows = np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int)
    info = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    column = next(name for name, feature in info.items() if feature["_type"] == "ClassLabel")
    chosen = table.take(rows)
    image = next(name for name, feature in info.items() if feature["_type"] == "Image")
    return (
        [one["bytes"] for one in chosen[image].to_pylist()],
        chosen[column].to_pylist(),
        info[column]["names"],
    )


async def apply(port: int, rate: float, seconds: float, files, labels, names, seed: int) -> Load:
    """Requests at the times of a Poisson process."""
    rng, load, idle, running = random.Random(seed), Load(seconds), [], set()

    async def ask(row: int) -> None:
        start = time.perf_counter()
        head = f"POST /?top_k=1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(files[row])}\r\n\r\n".encode()
        try:
            reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + files[row])
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = dict(line.split(": ", 1) for line in answer.split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(headers["content-length"]))
        except (OSError, asyncio.IncompleteReadError):
            load.statuses["lost"] += 1
            return
        latency, status = time.perf_counter() - start, int(answer[9:12])
        load.statuses[status] += 1
        if status == 200:
            load.latencies.append(latency)
            load.points[headers["x-operating-point"]] += 1
            load.right += json.loads(body)[0]["label"] == names[labels[row]]
        if headers.get("connection") == "close":
            writer.close()
        else:
            idle.append((reader, writer))

    start, due = time.perf_counter(), 0.0
    while (due := due + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - start)))
        task = asyncio.create_task(ask(rng.randrange(len(files))))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    for _, writer in idle:
        writer.close()
    return load


def reference_alone(model: PertinenceForImageClassification, folder: Path) -> PertinenceForImageClassification:
    """The same pool with one point, at which only the reference expert runs; saved to a folder."""
    reference = model.config.reference_index
    point = OperatingPoint("reference", "static", (reference,))
    front = Front([point], model.config.expert_names)
    alone = PertinenceForImageClassification.compose(list(model.experts), front, {}, point.name, reference=reference)
    alone.save_pretrained(folder)
    return alone


def alone_ratio(model, alone, files, turns: int) -> tuple[np.ndarray, dict[str, float]]:
    """Images a second of the default point over those of the reference expert, turn by turn, and both, unserved."""
    images = PertinenceImageProcessor()([Image.open(BytesIO(file)) for file in files[: 8 * BATCH]])["images"]
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    functions = {name: lambda one=one: [one(batch) for batch in batches] for name, one in (("a", alone), ("b", model))}
    seconds = take_turns(functions, turns, time.perf_counter)
    speeds = {name: len(images) / np.median(values) for name, values in seconds.items()}
    print(f"alone: reference {speeds['a']:.1f}, default {speeds['b']:.1f} images/s")
    return seconds["a"] / seconds["b"], speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a searched model of the CIFAR-10 pool")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--target", type=float, default=100.0, help="milliseconds of p95")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--backend")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files, labels, names = load_files(options.images)
    model = PertinenceForImageClassification.from_pretrained(options.model, trust_remote_code=True)
    config, front = model.config, model.front
    default = front.find(config.operating_point)
    own_loss = config.expert_entries[config.reference_index].select["accuracy"] - default.select.accuracy + 1e-9
    allowed = ServedPoints.of(config, ServedPointArguments(target_latency_ms=options.target)).allowed
    gain = default.select.gmacs / allowed[-1].select.gmacs
    print(
        f"{default.name} to {allowed[-1].name}: {len(allowed)} steps, {gain:.2f} times cheaper; load {os.getloadavg()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        alone = reference_alone(model, Path(folder) / "alone")
        ratio, speeds = alone_ratio(model, alone, files, options.turns)
        del alone
        servers = {
            "a, reference": [str(Path(folder) / "alone")],
            "b, default": [options.model, "--max-accuracy-loss", f"{own_loss:.12f}"],
            "c, moving": [options.model],
        }

        def serve(name: str):
            port = free_port()
            words = [sys.executable, "-m", "pertinence", "serve", *servers[name], "--port", str(port)]
            words += ["--target-latency-ms", str(options.target), "--trust-remote-code", "--batch-size", str(BATCH)]
            words += ["--backend", options.backend] if options.backend else []
            return port, serving(words, f"http://127.0.0.1:{port}/ready", Path(folder) / "log", OMP_NUM_THREADS="1")

        def run(port: int, rate: float, seconds: float, seed: int) -> Load:
            return asyncio.run(apply(port, rate, seconds, files, labels, names, seed))

        borne = {}
        for name in list(servers)[:2]:
            port, server = serve(name)
            with server:
                run(port, 50, 3, 0)
                low, high = 0.2 * speeds[name[0]], 1.2 * speeds[name[0]]
                for step in range(STEPS):
                    rate = (low + high) / 2
                    found = run(port, rate, options.seconds / 2, 2 + step)
                    holds = found.p95 <= options.target / 1000 and found.refused <= TOLERATED
                    low, high = (rate, high) if holds else (low, rate)
                    print(f"{name}: {found} {'holds' if holds else ''}; load {os.getloadavg()[0]:.1f}", flush=True)
                borne[name] = low
        a, b = borne.values()
        median = float(np.median(ratio))
        print(f"borne: (a) {a:.0f}, (b) {b:.0f} requests/s; (b)/(a) {b / a:.2f}, models alone {spread(ratio, '.2f')}")
        print(f"(b)/(a) over the ratio of the models alone: {b / a / median:.2f}")
        rate = 0.8 * gain * b
        print(f"at {rate:.0f} requests/s, {rate / b:.2f} times what (b) bears:")
        for name in servers:
            port, server = serve(name)
            with server:
                run(port, 50, 3, 0)
                print(f"{name}: {run(port, rate, options.seconds, 100)}; load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
