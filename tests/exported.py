"""A model of tiny experts with an operating point of each kind, whose experts were exported to ONNX."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from pertinence import Figures, Front, OperatingPoint, PertinenceForImageClassification, Stage
from pertinence.experts.expert import Expert, load_expert
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.routing.heads import Head, threshold_head


def change_config(folder: Path, change: Any) -> None:
    """Change the values of a model's config.json in place."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def save_resnet(folder: Path, images: torch.Tensor, labels: list[str]) -> Path:
    """A tiny ResNet of transformers with random weights, whose processor resizes with torchvision."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        names = dict(enumerate(labels))
        config = transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            id2label=names,
            label2id={v: k for k, v in names.items()},
        )
        network = transformers.ResNetForImageClassification(config).eval()
        last = network.classifier[1]
        logits = network(images / 127.5 - 1).logits
        last.weight.mul_(2 / logits.std(0).unsqueeze(1))
        last.bias.copy_((last.bias - logits.mean(0)) * 2 / logits.std(0))
    network.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 72, "width": 72}).save_pretrained(folder)
    return folder


def balanced_head(expert: Expert, images: torch.Tensor, count: int, seed: int) -> Head:
    """A random head on features, whose actions are about equally likely."""
    weight = torch.randn(count, expert.entry.features, generator=torch.Generator().manual_seed(seed))
    _, features = expert(images)
    return Head(weight, -(features @ weight.T).median(0).values)


def figures(accuracy: float, gmacs: float, shares: tuple[float, ...]) -> Figures:
    return Figures(accuracy, (accuracy - 0.02, accuracy + 0.02), {"gmacs": gmacs}, shares, 500)


def make_exported(
    experts: list[Path], root: Path, make_expert: Callable[..., Path], images: Callable[..., torch.Tensor]
) -> SimpleNamespace:
    """A pool of three exported experts and a stem, with an operating point of each kind.

    Args:
        experts: folders of two tiny experts of timm.
        root: folder for the others, and for the model.
        make_expert, images: the fixtures of these names.

    Returns:
        The folder of the saved model (`folder`), and the full model (`full`).
    """
    blobs = images(64, 80, seed=5)
    resnet = save_resnet(root / "resnet", images(64, 72, seed=6), [f"digit {index}" for index in range(10)])
    pool = load_pool([*experts, resnet], LoadOptions())
    stem = load_expert(ExpertReference(str(make_expert(root / "stem", size=32))), LoadOptions(), is_stem=True)
    mixing = ((1.0,), (0.5, 0.6), (0.3, 0.3, 0.5))
    stages = tuple(Stage(index, "mix", weights) for index, weights in enumerate(mixing))
    shares = (0.4, 0.3, 0.3)
    first = {"select": figures(0.6, 0.01, (1.0, 0.0, 0.0)), "report": figures(0.59, 0.01, (1.0, 0.0, 0.0))}
    points = [
        OperatingPoint("only-first", "static", (0,), **first),
        OperatingPoint("from-stem", "paper", (0, 1, 2), (Stage(-1, "features"),), figures(0.65, 0.02, shares)),
        OperatingPoint("from-features", "paper", (0, 1, 2), (Stage(0, "features"),), figures(0.7, 0.03, shares)),
        OperatingPoint("mixed", "cascade", (0, 1, 2), stages, figures(0.8, 0.04, shares)),
        OperatingPoint(
            "confident", "thresholds", (0, 2), (Stage(0, "confidence"),), figures(0.81, 0.05, (0.5, 0.0, 0.5))
        ),
    ]
    heads = {
        "from-stem": [balanced_head(stem, blobs, 3, 1)],
        "from-features": [balanced_head(pool[0], blobs, 3, 2)],
        "mixed": [threshold_head(points[3], stage, 0.6, 3) for stage in points[3].decisions],
        "confident": [threshold_head(points[4], points[4].stages[0], 0.6, 3)],
    }
    front = Front(points, [expert.entry.name for expert in pool])
    pool[2] = pool[2].with_entry(pool[2].entry.replace(select=figures(0.82, 0.06, (0.0, 0.0, 1.0)).to_dict()))
    full = PertinenceForImageClassification.compose(pool, front, heads, "mixed", stem)
    folder = root / "model"
    full.save_pretrained(folder, save_experts=True)
    PertinenceForImageClassification.from_pretrained(folder).export_onnx(folder, images(256, 90, seed=7))
    return SimpleNamespace(folder=folder, full=full)
