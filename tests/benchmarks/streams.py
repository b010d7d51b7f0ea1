"""A stream against a decision on every frame: accuracy, cost and time on clips of real CIFAR-10 images.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/streams.py --model runs/cifar10

Clips are camera motion over real images, with cuts (see tests/clips.py). The threshold of the scene change is chosen
on clips of their own, over images of `validation`: the largest that loses at most --loss points there; all figures are
from clips over images of `test`. Errors are those of scenes, as the frames of a scene are alike. Ways take turns; time
is that of the process.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from transformers.utils import logging

from pertinence import PertinenceForImageClassification, StreamDispatcher


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clips import camera_clip  # noqa: E402


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
THRESHOLDS = (0.016, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)


def follow(model, clip, labels, frames: int, settings: dict) -> tuple[np.ndarray, StreamDispatcher]:
    """Share of right answers in each scene, and the stream."""
    stream = StreamDispatcher(model, **settings)
    right = [(a.logits.argmax() == label).item() for a, label in zip(stream(clip), labels, strict=True)]
    return np.reshape(right, (-1, frames)).mean(1), stream


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Of accuracy on the same scenes, in points, with its standard error."""
    gain = 100 * (ours - theirs)
    return f"{gain.mean():+.2f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--loss", type=float, default=0.5)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    logging.disable_progress_bar()
    model = PertinenceForImageClassification.from_pretrained(options.model, trust_remote_code=True)

    clip, labels = camera_clip(ZOO, options.scenes, options.frames, seed=1, split="validation")
    every, _ = follow(model, clip, labels, options.frames, {"interval": 1})
    chosen = None
    for threshold in THRESHOLDS:
        right, stream = follow(model, clip, labels, options.frames, {"scene_change": threshold})
        share = 100 * stream.dispatches / stream.frames
        print(f"choosing: scene {threshold}: {difference(right, every)}, decisions on {share:.1f} %", flush=True)
        if 100 * (right.mean() - every.mean()) >= -options.loss:
            chosen = threshold
    print(f"chosen: {chosen}")

    clip, labels = camera_clip(ZOO, options.scenes, options.frames, seed=0)
    ways = {"every frame": {"interval": 1}, "interval 5": {"interval": 5}, "paper's 0.016": {"scene_change": 0.016}}
    if chosen is not None:
        ways[f"scene {chosen}"] = {"scene_change": chosen}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    right: dict[str, np.ndarray] = {}
    for turn in range(options.turns):
        for way, settings in ways.items():
            start = time.process_time()
            right[way], stream = follow(model, clip, labels, options.frames, settings)
            seconds[way].append((time.process_time() - start) / len(clip))
            if turn == options.turns - 1:
                ratios = np.array(seconds["every frame"]) / np.array(seconds[way])
                print(
                    f"{way:>14}: {100 * right[way].mean():.2f} % ({difference(right[way], right['every frame'])}), "
                    f"{stream.dispatches} decisions on {stream.frames} frames, "
                    f"{1000 * stream.gmacs:.1f} MMACs and {1000 * np.median(seconds[way]):.2f} ms a frame, "
                    f"{np.median(ratios):.2f} times [{ratios.min():.2f} .. {ratios.max():.2f}]",
                    flush=True,
                )


if __name__ == "__main__":
    main()
