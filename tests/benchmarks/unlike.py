"""Which images unlike those of the search are noticed by a CIFAR-10 model: other labels, corruptions, photographs.

    uv run python tests/benchmarks/unlike.py --limit 600

The model is searched on `validation`; thresholds of every method are those of its search images, at 1 and 5 % false
alarms. Shown are the shares of the images that are noticed by `ood_p_value` of the default point (entropy of the
answer), and by the largest softmax probability and the energy (Liu et al. 2020) of the reference expert, which must
run on every image for that; with AUROC against 3,000 clean images. "Kept" is the accuracy of what is not noticed at
5 %, beside that of all; "asked" the accuracy where the reference expert answers what is noticed at 5 % (`ood_action`
"reference"), and the operations that this adds. Corruptions are of torchvision v2, on the clean images of `test`.
"""

import argparse
import io
from collections.abc import Callable

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from pools import ZOO, load_benchmark_pool
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from transformers.utils import logging

from pertinence import SearchArguments
from pertinence.data.dataset import LabelledImages
from pertinence.evaluation.intervals import auroc
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.predictions.predict import predict
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.policy import route
from pertinence.routing.unlike import UnlikeRule
from pertinence.search.front_search import FoundFront, search_front


DEPTHS, SEARCHED, SIZE = (8, 20, 32, 44, 56), 5000, 32
RATES = (0.01, 0.05)


def noisy(sigma: float) -> Callable[[torch.Tensor], torch.Tensor]:
    floats, bytes_ = v2.ToDtype(torch.float32, scale=True), v2.ToDtype(torch.uint8, scale=True)
    return v2.Compose([floats, v2.GaussianNoise(sigma=sigma), bytes_])


CORRUPTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "noise, sd 0.04": noisy(0.04),
    "noise, sd 0.08": noisy(0.08),
    "blur, sigma 0.9": v2.GaussianBlur(5, 0.9),
    "JPEG, quality 50": v2.JPEG(50),
    "contrast x 0.25": lambda image: functional.adjust_contrast(image, 0.25),
}


def in_memory(images: list[torch.Tensor]) -> LabelledImages:
    """Images as PNG, which loses nothing, without labels that mean anything."""
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": encoded, "label": [0] * len(encoded)}
    return LabelledImages(datasets.Dataset.from_dict(columns, features=features), label_column="label")


def read(pattern: str, limit: int) -> list[torch.Tensor]:
    dataset = datasets.load_dataset("parquet", data_files=str(ZOO / pattern), split="train")
    images = LabelledImages(dataset.select(range(min(limit, len(dataset)))), needs_labels=False)
    return [images[index] for index in range(len(images))]


def small(image: torch.Tensor) -> torch.Tensor:
    """The middle of a photograph, at the size of CIFAR."""
    return functional.resize(functional.center_crop(image, min(image.shape[-2:])), [SIZE, SIZE], antialias=True)


def shares(known: np.ndarray, found: np.ndarray) -> list[str]:
    """Share of images that are stranger than all but a share of those known."""
    return [f"{100 * (found > np.quantile(known, 1 - rate)).mean():.1f} %" for rate in RATES]


class Scores:
    """The scores of every method on some images, rising with strangeness."""

    def __init__(self, found: FoundFront, predictions: Predictions, action: str = "ignore"):
        point, reference = found.evaluation.front.find(found.evaluation.default), found.evaluation.reference
        rule = UnlikeRule(action, RATES[1], reference)
        self.routing = route(
            point, found.heads[point.name], predictions.outputs, len(predictions), predictions.costs, unlike=rule
        )
        logits = predictions.logits(reference, torch.arange(len(predictions))).double()
        self.p_values = self.routing.p_values.double().numpy()
        self.softmax, self.energy = -logits.softmax(1).amax(1).numpy(), -logits.logsumexp(1).numpy()
        self.right = (self.routing.logits.argmax(1) == predictions.targets).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=3000, help="images of each kind")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    names, everything = load_benchmark_pool("c10")
    search, report = (everything.subset(rows) for rows in torch.arange(len(everything)).split((SEARCHED, 3000)))
    accelerator = Accelerator(cpu=True)
    found = search_front(names, search, report, SearchArguments(baselines=False), accelerator)
    known, clean = Scores(found, search), Scores(found, report)
    test = read("cifar10/data/test-*.parquet", options.limit)
    labels = report.targets[: len(test)]
    forms = {name: [change(image) for image in test] for name, change in CORRUPTIONS.items()}
    forms["CIFAR-100"] = read("cifar100/data/test-*.parquet", options.limit)
    forms["photographs"] = [small(image) for image in read("imagenet-val/data/*.parquet", options.limit)]
    experts = [str(ZOO / "cifar10" / f"resnet{depth}") for depth in DEPTHS]
    pool = load_pool(experts, LoadOptions(trust_remote_code=True))
    methods = ("entropy of the answer", "softmax", "energy")
    header = ["images", *(f"{name}, {100 * rate:g} %" for name in methods for rate in RATES)]
    header += ["AUROC", "right, all", "kept", "asked", "operations added"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for name, images in {"clean": None, **forms}.items():
        predictions = report
        if images is not None:
            said = predict(pool, in_memory(images), accelerator, batch_size=100)
            of_form = labels if name in CORRUPTIONS else torch.full((len(images),), -1)
            kept = [ExpertPredictions.keep(expert.scores) for expert in said.experts]
            predictions = Predictions.of_pool(kept, of_form, everything.costs)
        seen = Scores(found, predictions)
        cells = [f"{100 * (seen.p_values <= rate).mean():.1f} %" for rate in RATES]
        cells += shares(known.softmax, seen.softmax) + shares(known.energy, seen.energy)
        pairs = ((-clean.p_values, -seen.p_values), (clean.softmax, seen.softmax), (clean.energy, seen.energy))
        is_odd = np.arange(len(clean.right) + len(seen.right)) >= len(clean.right)
        areas = [auroc(np.concatenate(pair), is_odd) for pair in pairs]
        cells.append("" if images is None else ", ".join(f"{area:.3f}" for area in areas))
        if (predictions.labels >= 0).all():
            asked = Scores(found, predictions, "reference")
            added = (asked.routing.gmacs.mean() / seen.routing.gmacs.mean() - 1).item()
            accuracies = seen.right.mean(), seen.right[seen.p_values > RATES[1]].mean(), asked.right.mean()
            cells += [*(f"{100 * value:.2f} %" for value in accuracies), f"{100 * added:.1f} %"]
        else:
            cells += [""] * 4
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
