"""An hour of mixed requests from eight threads to one model: is every answer right, and does the memory stay flat?

    OMP_NUM_THREADS=1 nice -n 19 uv run python tests/benchmarks/soak.py --model runs/cifar10 --minutes 60

What is asked is written in tests/mixed_load.py: batches of 1 to 32 real images of four sizes, uint8, float and PIL, at
several operating points, whole, lazy under a cap and in bfloat16, streams, changes of another model's budget, and
invalid requests in between. A line a minute; at the end a verdict, and exit status 1 where an answer was wrong or the
memory grows.

What the process has from the system decides (`MALLOC_ARENA_MAX=2` leaves fewer holes in it to many threads). What is
allocated of it, as glibc counts, is told beside it: it rises to a level, as torch keeps up to 1,024 prepared
convolutions for each thread (`LRU_CACHE_CAPACITY=1` keeps one). With --rounds it is also told when all threads have
ended, and these with what they keep: what grows then is lost.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from scipy import stats
from transformers.utils import logging

from pertinence import PertinenceForImageClassification


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from memory import memory  # noqa: E402
from mixed_load import Counts, MixedLoad  # noqa: E402

from pertinence.data.decoding import decode_image


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
SIZES = (32, 28, 40, 64)
SECONDS, SHOWN = 10.0, 6
"""Between two measurements of memory, of which every sixth is shown."""
WARM_UP = 0.2
"""Share of the run that the memory may take to find its level."""
MAX_GROWTH = 2.0
"""Per cent of the resident memory in an hour that are no leak: what an allocator does."""


def real_images(count: int) -> list[torch.Tensor]:
    """CIFAR-10 test images, in turn as they are, cropped, padded and enlarged."""
    data = load_dataset("parquet", data_files={"test": str(ZOO / "cifar10/data/test-*.parquet")})["test"]
    images = []
    for number, row in enumerate(data.select(range(count))):
        size = SIZES[number % len(SIZES)]
        image = decode_image(row["image"])[:, :size, :size]
        if size > 32:
            image = torch.nn.functional.interpolate(image[None].float(), (size, size), mode="nearest")[0].byte()
        images.append(image.contiguous())
    return images


def show(minutes: float, sample: dict[str, float], counts: Counts, load: MixedLoad) -> None:
    print(
        f"{minutes:6.1f} min: {counts.requests:8,} requests, {counts.images:9,} images, {len(counts.wrong)} wrong, "
        f"{sample['allocated']:.1f} MiB allocated, {sample['resident']:.1f} resident, lazy loads "
        f"{load.forms['lazy'].experts[0].store.loads}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=1, help="after each all threads end, and others take over")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--points", type=int, default=6, help="operating points, evenly chosen from the front")
    options = parser.parse_args()
    logging.disable_progress_bar()

    front = PertinenceForImageClassification.from_pretrained(options.model, trust_remote_code=True).front
    chosen = np.unique(np.linspace(0, len(front) - 1, options.points).round().astype(int))
    names = [front[index].name for index in chosen]
    load = MixedLoad(options.model, real_images(options.images), names)
    for (form, point), rows in sorted(load.asked.items()):
        print(
            f"{form} at {point}: {len(rows)} of {options.images} images are decided clearly enough to be asked about"
        )

    seconds = 60 * options.minutes
    start, minutes, samples, idle = time.monotonic(), [], [], []
    every = min(SECONDS, seconds / options.rounds / 10)
    for _ in range(options.rounds):
        for counts in load.run(options.threads, seconds / options.rounds, every):
            minutes.append((time.monotonic() - start) / 60)
            samples.append(memory())
            if len(samples) % SHOWN == 0:
                show(minutes[-1], samples[-1], counts, load)
        idle.append(samples.pop())  # after the last answer
        minutes.pop()

    minutes = np.array(minutes)
    print(f"\n{counts.requests:,} requests on {counts.images:,} images in {minutes[-1]:.1f} minutes from ", end="")
    print(f"{options.threads} threads: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.kinds.items()))
    print(f"wrong: {len(counts.wrong)}", *dict.fromkeys(counts.wrong), sep="\n  ")
    print("MiB allocated when all threads had ended:", ", ".join(f"{sample['allocated']:.1f}" for sample in idle))
    print("largest difference of a logit:", ", ".join(f"{form} {d:.2g}" for form, d in counts.worst.items()))
    settled, leaks = minutes >= WARM_UP * options.minutes, False
    for kind in samples[0]:
        values = np.array([sample[kind] for sample in samples])[settled]
        fit = stats.linregress(minutes[settled] / 60, values)
        grows = 100 * fit.slope / values.mean()
        leaks |= bool(kind == "resident" and grows > MAX_GROWTH and fit.slope > 2 * fit.stderr)
        print(
            f"memory {kind} after {WARM_UP:.0%} of the time: {values.min():.1f} to {values.max():.1f} MiB, slope "
            f"{fit.slope:+.2f} ± {fit.stderr:.2f} MiB an hour ({grows:+.2f} %)"
        )
    print("verdict:", "wrong answers" if counts.wrong else "memory grows" if leaks else "no wrong answer, flat memory")
    sys.exit(bool(counts.wrong or leaks))


if __name__ == "__main__":
    main()
