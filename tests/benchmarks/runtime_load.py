"""What loading and many threads take: import time, experts opened by a lazy model, peak memory, 2,000 requests.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/runtime_load.py --model runs/cifar10
    OMP_NUM_THREADS=1 uv run python tests/benchmarks/runtime_load.py --model runs/lites-cascade --cap 46MB \\
        --parts memory

Every figure of time is from processes of their own that take turns; memory is the peak of a process.
"""

import argparse
import json
import subprocess
import sys

import numpy as np


IMPORT_THEIRS = "from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification"
TIMED = """
import resource, time
start = time.process_time()
{what}
print(time.process_time() - start)
"""
RUN = """
import json, resource, sys, torch
from pertinence import PertinenceForImageClassification
settings = json.loads(sys.argv[1])
model = PertinenceForImageClassification.from_pretrained(settings["model"], trust_remote_code=True, **settings["load"])
point = model.front[0].name if settings["cheapest"] else None
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for value in range(64):
    model(torch.full((4, 3, 32, 32), 4 * value, dtype=torch.uint8), operating_point=point)
held = [p.numel() * p.element_size() for p in model.parameters()]
store = getattr(model.experts[0], "store", None)
print(json.dumps({
    "loads": None if store is None else store.loads,
    "held": sum(held) if store is None else store.memory,
    "rss": [start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss],
}))
"""
THREADS = """
import gc, json, sys, threading, torch
from concurrent.futures import ThreadPoolExecutor
from pertinence import PertinenceForImageClassification
settings = json.loads(sys.argv[1])
model = PertinenceForImageClassification.from_pretrained(settings["model"], trust_remote_code=True, **settings["load"])
generator = torch.Generator().manual_seed(0)
def request(number):
    sizes = [(32, 40, 28)[(number + i) % 3] for i in range(1 + number % 6)]
    return [torch.randint(0, 256, (3, 5, 5), generator=generator, dtype=torch.uint8).repeat_interleave(8, 1)
            .repeat_interleave(8, 2)[:, :size, :size].contiguous() for size in sizes]
requests = [request(number) for number in range(100)]
expected = [model(images) for images in requests]
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096
wrong, memory = 0, []
with ThreadPoolExecutor(8) as threads:
    for wave in range(20):
        for out, right in zip(threads.map(model, requests), expected):
            same = torch.equal(out.expert_indices, right.expert_indices)
            wrong += not (same and torch.allclose(out.logits, right.logits, atol=1e-4, rtol=0))
        memory.append(resident())
print(json.dumps({"wrong": wrong, "memory": memory}))
"""


def run(code: str, settings: dict | None = None) -> str:
    """The last line that a process of its own prints."""
    arguments = [] if settings is None else [json.dumps(settings)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cap", default="4MB")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    for part in options.parts:
        PARTS[part](options)


def show_import(options: argparse.Namespace) -> None:
    theirs, ours = [], []
    for _ in range(options.turns):
        theirs.append(float(run(TIMED.format(what=IMPORT_THEIRS))))
        ours.append(float(run(TIMED.format(what=f"{IMPORT_THEIRS}\nimport pertinence"))))
    ratio = np.quantile(np.array(ours) / np.array(theirs), [0.25, 0.5, 0.75])
    print(
        f"import: transformers' Auto classes {np.median(theirs):.2f} s, with pertinence {np.median(ours):.2f} s: "
        f"{ratio[1]:.3f} [{ratio[0]:.3f} .. {ratio[2]:.3f}] times"
    )


def show_memory(options: argparse.Namespace) -> None:
    for name, load, cheapest in (
        ("all at once", {}, False),
        ("lazy, cheapest point", {"lazy": True}, True),
        ("lazy", {"lazy": True}, False),
        (f"lazy, cap {options.cap}", {"lazy": True, "max_memory": options.cap}, False),
    ):
        told = json.loads(run(RUN, {"model": options.model, "load": load, "cheapest": cheapest}))
        print(
            f"{name:>22}: checkpoints loaded {told['loads'] if told['loads'] is not None else 'all'}, "
            f"{told['held'] / 1e6:.2f} MB of parameters held, peak {told['rss'][1] / 1024:.0f} MiB"
        )


def show_threads(options: argparse.Namespace) -> None:
    for name, load in (("all at once", {}), ("lazy", {"lazy": True})):
        told = json.loads(run(THREADS, {"model": options.model, "load": load}))
        memory = np.array(told["memory"]) / 2**20
        print(
            f"8 threads, 2,000 requests, {name}: {told['wrong']} wrong; resident {memory[1]:.0f} MiB after 200 "
            f"requests, {memory[9]:.0f} after 1,000, {memory[-1]:.0f} after 2,000",
            flush=True,
        )


PARTS = {"import": show_import, "memory": show_memory, "threads": show_threads}


if __name__ == "__main__":
    main()
