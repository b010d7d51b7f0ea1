"""Classify a stream of frames: decide from time to time, and let the expert that answered run alone in between.

    python examples/streaming.py clip.gif --model user/pertinence-cifar10 --interval 30
    python examples/streaming.py folder/of/frames --model runs/cifar10 --scene-change 0.05

Frames are the image files of a folder, by name, or those of an animation that Pillow reads (GIF, WebP, APNG).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageSequence

from pertinence import PertinenceError, PertinenceForImageClassification, StreamDispatcher


def read_frames(source: Path) -> Iterator[Image.Image]:
    """The frames one by one, as from a camera."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            with Image.open(path) as image:
                yield image.convert("RGB")
        return
    with Image.open(source) as animation:
        for frame in ImageSequence.Iterator(animation):
            yield frame.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path, help="Folder of image files, or an animation.")
    parser.add_argument("--model", default="user/pertinence-cifar10", help="Hub id or folder; default: %(default)s.")
    parser.add_argument("--interval", type=int, help="Frames from one decision to the next.")
    parser.add_argument("--scene-change", type=float, help="Decide again when a scene changes by this, 0 to 1.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run the code that experts bring with them.")
    options = parser.parse_args()
    if options.interval is None and options.scene_change is None:
        options.interval = 30

    model = PertinenceForImageClassification.from_pretrained(
        options.model, trust_remote_code=options.trust_remote_code
    )
    stream = StreamDispatcher(model, options.interval, scene_change=options.scene_change)
    for index, answer in enumerate(stream(read_frames(options.frames))):
        label = model.config.id2label[answer.logits.argmax().item()]
        expert = model.config.expert_names[answer.expert_index]
        how = "decided" if answer.dispatched else "goes on"
        print(f"{index:6} {label:20} {expert:20} {how}  {answer.gmacs:.4g} GMACs")
    print(stream)


if __name__ == "__main__":
    try:
        main()
    except (PertinenceError, OSError) as error:  # such as no connection
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
