"""What folding batch norms and `torch.compile` save: CPU time of experts in torch against the same as they are loaded.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/folding.py --turns 15

Ratios of process CPU time, plain / folded, and with --compile plain / compiled and plain / folded and compiled; all
take turns in one process. Figures are medians of ratios within a turn, with their quartiles. Pixels are ready, as
preprocessing is the same for all.
"""

import argparse
import time

import torch
from pools import ZOO
from runtime import load_rows, spread, take_turns
from transformers.utils import logging

from pertinence.data.decoding import decode_image
from pertinence.experts.expert import Expert, load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions


EXPERTS = {
    "cifar10/resnet20": "cifar10",
    "cifar10/resnet56": "cifar10",
    "imagenet/mobilenet_v2_1.0_224": "imagenet",
}


def load(name: str, folds: bool, compiles: bool) -> Expert:
    options = LoadOptions(trust_remote_code=True, fold_batch_norms=folds)
    expert = load_expert(ExpertReference.parse(ZOO / name), options)
    if compiles:
        expert.compile_network({"dynamic": True})
    return expert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", nargs="+", choices=EXPERTS, default=list(EXPERTS))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile, which takes minutes to begin")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ways = {"plain": (False, False), "folded": (True, False)}
    if options.compile:
        ways |= {"compiled": (False, True), "folded and compiled": (True, True)}
    for name in options.experts:
        images = [decode_image(photo) for photo in load_rows(EXPERTS[name], options.images)[0]]
        experts = {way: load(name, *how) for way, how in ways.items()}
        pixels = torch.cat(list(experts["plain"].preprocess.batches(images)))
        for size in options.batch_size:
            batches = pixels.split(size)

            @torch.inference_mode()
            def answer(expert: Expert, batches=batches) -> None:
                for batch in batches:
                    expert.network.run(batch)

            functions = {way: lambda expert=expert, run=answer: run(expert) for way, expert in experts.items()}
            seconds = take_turns(functions, options.turns, time.process_time)
            ratios = "; ".join(
                f"{way} {spread(seconds['plain'] / values, '.2f')}"
                for way, values in seconds.items()
                if way != "plain"
            )
            print(f"{name}, batch {size:>3}, {torch.get_num_threads()} thread(s): {ratios}", flush=True)


if __name__ == "__main__":
    main()
