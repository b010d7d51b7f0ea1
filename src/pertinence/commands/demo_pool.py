"""The demo, offline and without any input: train three small experts, search, and use the searched model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.models import save_for_hf
from torch import nn
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from ..data.dataset import LabelledImages, raise_or
from ..data.splits import stratified_split
from ..experts.transforms import apply_transform
from ..runtime.transform import Transform
from ..search.arguments import SearchArguments
from ..search.search import DispatcherSearch
from ..utils.errors import PertinenceError
from ..utils.progress import progress_bar
from .output import next_line


IMAGE_SIZE = 32
MEAN = STD = (0.5, 0.5, 0.5)
TRAIN_IMAGES, SEARCH_IMAGES = 400, 900
BATCH_SIZE, LEARNING_RATE = 32, 3e-3


@dataclass(frozen=True)
class DemoExpert:
    """A timm architecture, the size of its input in pixels, and the length of its training."""

    architecture: str
    size: int
    epochs: int


EXPERTS = (DemoExpert("test_efficientnet", 16, 5), DemoExpert("test_resnet", 32, 6), DemoExpert("resnet10t", 32, 20))


def run_demo(output_dir: str, seed: int = 0) -> None:
    """Train three experts on scikit-learn's digits, search, save, load the result again and classify unseen images.

    Args:
        output_dir: new or empty folder, for `experts/` and `model/`.
        seed: random seed.

    Raises:
        PertinenceError: the folder contains something else.
    """
    # Networks this small gain nothing from a second thread, and wait for it if the cores are busy.
    torch.set_num_threads(1)
    folder = Path(output_dir)
    if folder.exists() and any(folder.iterdir()) and not (folder / "experts").is_dir():
        raise PertinenceError(f"the output folder {folder} holds something else: choose another --output-dir")
    train, search, unseen = digits(seed)
    print(f"Digits of scikit-learn: {len(train)} train experts, {len(search)} search, {len(unseen)} are never seen.")
    experts = [
        train_expert(expert, train, folder / "experts" / f"seed-{seed}" / expert.architecture, seed)
        for expert in EXPERTS
    ]

    saved_to = str(folder / ("model" if seed == 0 else f"model-{seed}"))
    args = SearchArguments(seed=seed, front_size=12, output_dir=saved_to)
    result = DispatcherSearch(experts, search, args, report_dataset=unseen).run()
    result.save(saved_to)
    print(result.evaluation.text(with_warnings=False), "\n")

    classify: Any = pipeline("image-classification", model=saved_to)
    model = classify.model
    answers = list(classify(KeyDataset(unseen, "image"), batch_size=64, top_k=1))
    right = np.mean([int(answer[0]["label"]) == label for answer, label in zip(answers, unseen["label"], strict=True)])
    point = model.front.find(model.config.operating_point)
    reference = model.config.experts[model.config.reference_index]
    saved = 100 * (1 - point.report.gmacs / reference["gmacs"])
    print(
        f'pipeline("image-classification", model="{saved_to}") is right on {100 * right:.2f} % '
        f"of the unseen images\nwith {saved:.0f} % fewer operations than {reference['name']} "
        f"({100 * reference['report']['accuracy']:.2f} %).",
        next_line("pertinence", "info", saved_to),
        sep="\n",
    )


def digits(seed: int) -> tuple[datasets.Dataset, datasets.Dataset, datasets.Dataset]:
    """scikit-learn's 1,797 handwritten digits as images, split for training experts, for the search, and the rest."""
    data = load_digits()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    pixels = (data.images * (255 / 16)).round().astype(np.uint8)
    images = [Image.fromarray(p).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC) for p in pixels]
    everything = datasets.Dataset.from_dict({"image": images, "label": data.target.tolist()}, features=features)
    labels = torch.from_numpy(data.target)
    rest, train = stratified_split(labels, TRAIN_IMAGES / len(labels), seed)
    unseen, search = stratified_split(labels[rest], SEARCH_IMAGES / len(rest), seed)
    return tuple(everything.select(rows.tolist()) for rows in (train, rest[search], rest[unseen]))


def train_expert(expert: DemoExpert, dataset: datasets.Dataset, folder: Path, seed: int) -> Path:
    """Train a timm model and save it in the format of the Hub, unless its folder exists; returns the folder."""
    if (folder / "config.json").is_file():
        return folder
    images = LabelledImages(dataset)
    transform = Transform("timm", (expert.size,) * 2, resize=expert.size, rescale=1 / 255, mean=MEAN, std=STD)
    pixels = apply_transform(transform, torch.stack(raise_or([images[index] for index in range(len(images))])))
    targets = torch.tensor(dataset["label"])
    names = list((images.label_names or {}).values())
    torch.manual_seed(seed)
    model: Any = timm.create_model(expert.architecture, num_classes=len(names)).train()
    steps = expert.epochs * -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    with progress_bar(steps, f"Training {expert.architecture}", "step") as bar:
        for _ in range(expert.epochs):
            for rows in torch.randperm(len(images)).split(BATCH_SIZE):
                loss = nn.functional.cross_entropy(model(pixels[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(1)
    model.pretrained_cfg.update(
        input_size=(3, expert.size, expert.size), interpolation="bilinear", crop_pct=1.0, mean=MEAN, std=STD
    )
    config = {"num_classes": len(names), "label_names": names}
    save_for_hf(model.eval(), str(folder), config, safe_serialization=True)
    return folder
