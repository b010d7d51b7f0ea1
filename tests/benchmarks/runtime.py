"""What the runtime makes of saved operations: efficiency of routing, and the clock against other ways to answer.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/runtime.py efficiency --model runs/cifar10-latency
    OMP_NUM_THREADS=1 uv run python tests/benchmarks/runtime.py clock --model runs/cifar10-latency

`efficiency`: (every expert on exactly the images that it was run on, alone, same chunks) / (routed forward), bare
networks on pixels that are ready, and with preprocessing inside both. `clock`: images per second against the largest
expert (as transformers runs it, and in our chunks), a per-image loop, and a two-model max-softmax cascade as people
write it, whose two experts and threshold are chosen on the pool's search images by the rule that chooses our default
point: the cheapest that beats the largest expert by half a paired standard error. A, B, ... take turns, many times;
figures are medians of ratios within a turn, with their quartiles. Without --model the pool is a cascade by thresholds.
Time is that of the process, as other jobs share the cores; --wall for the wall clock.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from transformers import pipeline
from transformers.utils import logging

from pertinence import PertinenceForImageClassification, PertinenceImageProcessor
from pertinence.data.batches import chunks
from pertinence.data.decoding import decode_image
from pertinence.routing.policy import route


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
POOLS = {
    "cifar10": ("test", [f"cifar10/resnet{depth}" for depth in (8, 20, 32, 44, 56)], 0.9),
    "imagenet": ("train", [f"imagenet/tf_efficientnet_lite{index}" for index in range(3)], 0.8),
}


def load_model(pool: str, folder: str | None, preprocessing: str) -> PertinenceForImageClassification:
    if folder is not None:
        return PertinenceForImageClassification.from_pretrained(
            folder, preprocessing=preprocessing, trust_remote_code=True
        )
    _, experts, threshold = POOLS[pool]
    return PertinenceForImageClassification.from_experts(
        [ZOO / expert for expert in experts], threshold, preprocessing=preprocessing, trust_remote_code=True
    )


def load_rows(pool: str, count: int):
    """So many images (PIL) of a pool, evenly spaced, and their labels."""
    split = POOLS[pool][0]
    files = str(ZOO / pool / "data" / ("*.parquet" if pool == "imagenet" else f"{split}-*.parquet"))
    dataset = load_dataset("parquet", data_files={split: files}, split=split)
    rows = dataset.select(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    return rows["image"][:], torch.tensor(rows["label"][:])


def take_turns(functions: dict[str, Callable[[], object]], turns: int, clock: Callable[[], float]) -> dict:
    """Seconds of each, turn by turn, after one turn that is not counted; the order changes from turn to turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for turn in range(-1, turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            functions[name]()
            if turn >= 0:
                seconds[name].append(clock() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: np.ndarray, form: str = ".3f") -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:{form}} [{low:{form}} .. {high:{form}}]"


def efficiency(model: PertinenceForImageClassification, batches: list[list[torch.Tensor]], turns: int, clock) -> list:
    """Ratios alone / routed: bare networks, and with preprocessing inside both."""
    point = model.front.find(model.config.operating_point)
    heads = model.dispatcher.heads(point)
    ran = [model(batch).experts_run for batch in batches]
    rows = [[mask.nonzero().squeeze(1) for mask in part.T] for part in ran]
    pixels = [
        [
            expert.preprocess(batch).to(memory_format=expert.network.memory_format) if len(own) else None
            for expert, own in zip(model.experts, mine, strict=True)
        ]
        for batch, mine in zip(batches, rows, strict=True)
    ]
    mine = [[[batch[row] for row in own.tolist()] for own in part] for batch, part in zip(batches, rows, strict=True)]
    own_pixels = [
        [None if not len(own) else ready[own] for ready, own in zip(part, own_rows, strict=True)]
        for part, own_rows in zip(pixels, rows, strict=True)
    ]
    cpu = torch.device("cpu")

    def network(expert, ready: torch.Tensor) -> torch.Tensor:
        parts = [expert.model(pixel_values=chunk).logits for chunk in chunks(ready, expert.chunk_size(cpu))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()
    def bare_alone() -> None:
        for part in own_pixels:
            for expert, ready in zip(model.experts, part, strict=True):
                if ready is not None:
                    network(expert, ready)

    @torch.inference_mode()
    def bare_routed() -> None:
        for batch, part in zip(batches, pixels, strict=True):

            def run(index: int, asked: torch.Tensor, part=part):
                ready = part[index] if len(asked) == len(part[index]) else part[index][asked]
                return network(model.experts[index], ready), None

            route(point, heads, run, len(batch), model.costs)

    @torch.inference_mode()
    def alone() -> None:
        for part in mine:
            for expert, images in zip(model.experts, part, strict=True):
                if images:
                    for chunk in chunks(images, expert.chunk_size(cpu)):
                        ready = expert.preprocess(chunk).to(memory_format=expert.network.memory_format)
                        expert.model(pixel_values=ready)

    def routed() -> None:
        for batch in batches:
            model(batch)

    functions = {"bare alone": bare_alone, "bare routed": bare_routed, "alone": alone, "routed": routed}
    seconds = take_turns(functions, turns, clock)
    return [seconds["bare alone"] / seconds["bare routed"], seconds["alone"] / seconds["routed"]]


def per_image_loop(model: PertinenceForImageClassification, batch: list[torch.Tensor]) -> None:
    """A straightforward loop: each image from expert to expert, by the same decisions."""
    for image in batch:
        model([image])


def usual_cascade(small, large, threshold: float) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    """Two models and max-softmax, the way it is usually written: batch to the small, what is doubtful to the large."""

    @torch.no_grad()
    def answer(batch: list[torch.Tensor]) -> torch.Tensor:
        logits = small.model(pixel_values=small.preprocess(batch)).logits
        doubtful = (logits.softmax(-1).amax(-1) < threshold).nonzero().squeeze(1)
        if len(doubtful):
            images = [batch[row] for row in doubtful.tolist()]
            logits[doubtful] = large.model(pixel_values=large.preprocess(images)).logits
        return logits

    return answer


def tuned_cascade(pool: str, names: list[str], gmacs: list[float]) -> tuple[int, int, float]:
    """The small and the large expert of the usual cascade, and its threshold, by what they say of search images.

    Without cached predictions of the search images: the first, the last, and 0.9.
    """
    path = ZOO / "predictions" / f"{pool}-logits.npz"
    if not path.exists():
        return 0, len(names) - 1, 0.9
    stored = np.load(path)
    logits = [torch.from_numpy(stored[f"validation_{name}"]).float() for name in names]
    target = torch.from_numpy(stored["validation_label"]).long()
    right = torch.stack([scores.argmax(1) == target for scores in logits]).double()
    found = {}
    for small, large in itertools.combinations(range(len(names)), 2):
        sure = logits[small].softmax(1).amax(1)
        for threshold in sure.quantile(torch.linspace(0.02, 0.98, 193)).tolist():
            gain = torch.where(sure < threshold, right[large], right[small]) - right[-1]
            if gain.mean() >= 0.5 * gain.std() / len(gain) ** 0.5:
                share = (sure < threshold).double().mean().item()
                found[gmacs[small] + share * gmacs[large]] = small, large, threshold
    return found[min(found)]


def clock_table(model, plain, pair, batches, turns: int, clock) -> dict[str, np.ndarray]:
    """Times of a whole pass over the batches, each way.

    `plain` are the same experts in the layout that transformers gives them, `pair` what `tuned_cascade` chose.
    """
    largest = plain.experts[-1]

    @torch.no_grad()
    def largest_as_usual() -> None:
        for batch in batches:
            largest.model(pixel_values=largest.preprocess(batch))

    def largest_in_chunks() -> None:
        for batch in batches:
            model.experts[-1](batch)

    cascade = usual_cascade(plain.experts[pair[0]], plain.experts[pair[1]], pair[2])
    functions = {
        "routed": lambda: [model(batch) for batch in batches],
        "largest": largest_as_usual,
        "largest, our chunks": largest_in_chunks,
        "loop": lambda: [per_image_loop(model, batch) for batch in batches],
        "usual cascade of 2": lambda: [cascade(batch) for batch in batches],
    }
    return take_turns(functions, turns, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["efficiency", "clock", "pipeline"])
    parser.add_argument("--pool", choices=POOLS, default="cifar10")
    parser.add_argument("--model", help="a searched model of that pool; default: thresholds")
    parser.add_argument("--operating-point")
    parser.add_argument("--preprocessing", nargs="+", default=["exact", "fast"])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--wall", action="store_true")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    clock = time.perf_counter if options.wall else time.process_time
    photos, labels = load_rows(options.pool, options.images)
    images = [decode_image(photo) for photo in photos]
    for preprocessing in options.preprocessing:
        model = load_model(options.pool, options.model, preprocessing)
        plain = load_model(options.pool, options.model, preprocessing)
        for expert in plain.experts:
            expert.model.to(memory_format=torch.contiguous_format)
        if options.operating_point:
            model.set_budget(operating_point=options.operating_point)
        out, (alone, _) = model(images), model.experts[-1](images)
        right, largest_right = ((logits.argmax(1) == labels).float().mean().item() for logits in (out.logits, alone))
        ideal = model.config.experts[-1]["gmacs"] / out.gmacs.mean().item()
        print(
            f"\n{options.pool}, {preprocessing}, {model.config.operating_point}: {100 * right:.2f} %, largest "
            f"{100 * largest_right:.2f} %; {ideal:.2f} times fewer operations; {torch.get_num_threads()} thread(s)"
        )
        names = [entry["name"] for entry in model.config.experts]
        pair = tuned_cascade(options.pool, names, [entry["gmacs"] for entry in model.config.experts])
        usual = usual_cascade(plain.experts[pair[0]], plain.experts[pair[1]], pair[2])(images)
        usual_right = (usual.argmax(1) == labels).float().mean().item()
        print(f"usual cascade: {names[pair[0]]}, {names[pair[1]]} below {pair[2]:.3f}: {100 * usual_right:.2f} %")
        for size in options.batch_size:
            batches = [images[start : start + size] for start in range(0, len(images), size)]
            if options.table == "efficiency":
                bare, whole = efficiency(model, batches, options.turns, clock)
                print(f"batch {size:>4}: networks {spread(bare)}, with preprocessing {spread(whole)}", flush=True)
            elif options.table == "clock":
                seconds = clock_table(model, plain, pair, batches, options.turns, clock)
                rate = len(images) / np.median(seconds["routed"])
                ratios = "; ".join(
                    f"{name} {spread(values / seconds['routed'], '.2f')}"
                    for name, values in seconds.items()
                    if name != "routed"
                )
                print(f"batch {size:>4}: {rate:7.1f} images/s; times faster than: {ratios}", flush=True)
            else:
                processor = PertinenceImageProcessor()
                ours = pipeline("image-classification", model=model, image_processor=processor)
                theirs = pipeline(
                    "image-classification",
                    model=plain.experts[-1].model,
                    image_processor=plain.experts[-1].preprocess.processor,
                )
                functions = {
                    name: lambda classify=classify, size=size: list(classify(photos, batch_size=size))
                    for name, classify in (("ours", ours), ("largest", theirs))
                }
                seconds = take_turns(functions, options.turns, clock)
                print(f"batch {size:>4}: pipeline {spread(seconds['largest'] / seconds['ours'], '.2f')}", flush=True)


if __name__ == "__main__":
    main()
