"""A stream against a decision on every frame: accuracy, cost and time on a clip of real CIFAR-10 images.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/streams.py --model runs/cifar10

The clip is camera motion over real images, with cuts (see tests/clips.py). Ways take turns; time is that of the
process.
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
WAYS = {
    "every frame": {"interval": 1},
    "interval 5": {"interval": 5},
    "interval 20": {"interval": 20},
    "scene 0.1": {"scene_change": 0.1},
    "scene 0.2": {"scene_change": 0.2},
    "scene 0.2, interval 10": {"scene_change": 0.2, "interval": 10},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    logging.disable_progress_bar()
    model = PertinenceForImageClassification.from_pretrained(options.model, trust_remote_code=True)
    clip, labels = camera_clip(ZOO, options.scenes, options.frames, seed=0)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(options.turns):
        for way, settings in WAYS.items():
            stream = StreamDispatcher(model, **settings)
            start = time.process_time()
            answers = list(stream(clip))
            seconds[way].append((time.process_time() - start) / len(clip))
            if turn == options.turns - 1:
                right = np.mean([a.logits.argmax() == label for a, label in zip(answers, labels, strict=True)])
                ratios = np.array(seconds["every frame"]) / np.array(seconds[way])
                print(
                    f"{way:>22}: {100 * right:.2f} %, {stream.dispatches} decisions on {stream.frames} frames, "
                    f"{1000 * stream.gmacs:.1f} MMACs and {1000 * np.median(seconds[way]):.2f} ms a frame, "
                    f"{np.median(ratios):.2f} times [{ratios.min():.2f} .. {ratios.max():.2f}]",
                    flush=True,
                )


if __name__ == "__main__":
    main()
