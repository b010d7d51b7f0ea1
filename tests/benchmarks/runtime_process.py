"""What a process without torch takes: disk, memory, time to the first answer; and whether it answers the same.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/runtime_process.py cifar10 --images 500
    OMP_NUM_THREADS=1 uv run python tests/benchmarks/runtime_process.py imagenet --images 300

The wheel `pertinence-runtime` is built and installed with uv into an environment of its own. Models are those of
backends.py (--folder). It prints what is installed and its size; the peak of the resident memory, and CPU time (with
the start of Python) and wall time (without it) to the first answer of the default point, beside the full package in
torch and with backend="onnx" (processes of their own that take turns; medians); and for every operating point the
share of images with the same answer, and with the same experts, as the full package in torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from backends import FOLDER, POOLS, images_of, searched_model
from PIL import Image
from transformers.utils import logging


SOURCE = Path(__file__).resolve().parents[2] / "src" / "pertinence_runtime"
FIRST = """
import json, resource, sys, time
wall = time.perf_counter()
model, image, backend = sys.argv[1:]
if backend == "runtime":
    from pertinence_runtime import load
    label = load(model)(image).label
else:
    from pertinence import PertinenceForImageClassification, PertinenceImageProcessor
    loaded = PertinenceForImageClassification.from_pretrained(model, trust_remote_code=True, backend=backend)
    label = loaded.config.id2label[int(loaded(PertinenceImageProcessor()(image)["images"]).logits.argmax())]
used = resource.getrusage(resource.RUSAGE_SELF)
with open("/proc/self/status") as status:  # the peak of getrusage is at least that of the parent
    (peak,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({
    "label": label, "wall": time.perf_counter() - wall, "cpu": used.ru_utime + used.ru_stime, "peak": peak,
}))
"""
ANSWERS = """
import json, sys
from pathlib import Path
model, folder, batch = sys.argv[1:]
from pertinence_runtime import load
paths = [str(path) for path in sorted(Path(folder).glob("*.png"))]
loaded = load(model, threads=1)
parts = [paths[start : start + int(batch)] for start in range(0, len(paths), int(batch))]
print(json.dumps({
    point.name: [
        [answer.label, answer.experts_run]
        for part in parts for answer in loaded(part, operating_point=point.name)
    ]
    for point in loaded.front
}))
"""
BATCH = 50


def make_environment(folder: Path) -> Path:
    """The Python of an environment that holds the wheel and its dependencies alone."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=SOURCE, check=True)
    (wheel,) = folder.glob("pertinence_runtime-*.whl")
    environment = folder / "env"
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, wheel], check=True)
    listed = subprocess.run(["uv", "pip", "list", "--python", python], check=True, capture_output=True, text=True)
    print(f"wheel: {wheel.stat().st_size / 1e3:.0f} kB; environment: {size_of(environment) / 1e6:.0f} MB")
    print(", ".join(" ".join(line.split()) for line in listed.stdout.splitlines()[2:]))
    return python


def size_of(folder: Path) -> int:
    """Bytes on disk of a folder."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def run(python: str | Path, code: str, *arguments: str | Path) -> Any:
    environment = dict(os.environ) if python == sys.executable else {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [python, "-W", "ignore", "-c", code, *arguments], env=environment, capture_output=True, text=True
    )
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return json.loads(finished.stdout.splitlines()[-1])


def show_first_answer(python: Path, model: Path, image: Path, turns: int) -> None:
    """Print what each process takes; the first turn, which reads files from the disk, is not counted."""
    ways = {"runtime without torch": (python, "runtime"), "full, torch": (sys.executable, "torch")}
    ways["full, onnx"] = (sys.executable, "onnx")
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for turn in range(-1, turns):
        for name, (executable, backend) in ways.items():
            found = run(executable, FIRST, model, image, backend)
            if turn >= 0:
                told[name].append(found)
    print("\n| process | peak memory | CPU s to the first answer | wall s | answer |")
    print("| --- | ---: | ---: | ---: | --- |")
    for name, several in told.items():
        peak, cpu, wall = (np.median([one[key] for one in several]) for key in ("peak", "cpu", "wall"))
        print(f"| {name} | {peak / 1024:.0f} MiB | {cpu:.2f} | {wall:.2f} | {several[0]['label']} |", flush=True)


def show_answers(python: Path, model: Path, folder: Path, count: int) -> None:
    """Print the share of the same answers and of the same experts at every operating point."""
    from pertinence import PertinenceForImageClassification, PertinenceImageProcessor

    full = PertinenceForImageClassification.from_pretrained(model, trust_remote_code=True, backend="torch")
    told = run(python, ANSWERS, model, folder, str(BATCH))
    images = PertinenceImageProcessor()([str(path) for path in sorted(folder.glob("*.png"))])["images"]
    print(f"\n| operating point | same answers of {count} | same experts |\n| --- | ---: | ---: |")
    shares = []
    for point in full.front:
        answers, experts = [], []
        for start in range(0, count, BATCH):
            out = full(images[start : start + BATCH], operating_point=point.name)
            answers += [full.config.id2label[index] for index in out.logits.argmax(1).tolist()]
            experts += [[full.front.expert_names[i] for i in row.nonzero().flatten()] for row in out.experts_run]
        theirs = told[point.name]
        same = [
            np.mean([ours == one for ours, one in zip(listed, (row[part] for row in theirs), strict=True)])
            for part, listed in enumerate((answers, experts))
        ]
        shares.append(same)
        marked = " *" if point.name == full.config.operating_point else ""
        print(f"| {point.name}{marked} | {100 * same[0]:.2f} % | {100 * same[1]:.2f} % |", flush=True)
    for name, summary in (("least", np.min(shares, 0)), ("mean", np.mean(shares, 0))):
        print(f"| {name} | {100 * summary[0]:.3f} % | {100 * summary[1]:.3f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", choices=POOLS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = searched_model(options.pool, options.folder)
    rows = images_of(options.pool, "test")
    chosen = rows.select(np.linspace(0, len(rows) - 1, options.images).round().astype(int))
    with tempfile.TemporaryDirectory() as temporary:
        python, images = make_environment(Path(temporary)), Path(temporary) / "images"
        images.mkdir()
        for index, image in enumerate(chosen["image"][:]):
            Image.Image.save(image.convert("RGB"), images / f"{index:05}.png")
        show_first_answer(python, model, images / "00000.png", options.turns)
        show_answers(python, model, images, options.images)


if __name__ == "__main__":
    main()
