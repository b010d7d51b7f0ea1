"""Models of tiny experts whose networks were exported to ONNX, made by hand."""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from torch.export import Dim

from pertinence import Figures, Front, OperatingPoint, PertinenceForImageClassification, Stage
from pertinence.experts.expert import Expert, load_expert
from pertinence.experts.host_pixels import measure_host_pixels
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.routing.heads import Head, threshold_head
from pertinence.runtime.exports import Export


class Network(nn.Module):
    """The network of an expert, with its pooled features: that of timm, or a ResNet of transformers."""

    def __init__(self, expert: Expert):
        super().__init__()
        self.model = getattr(expert.model, "timm_model", expert.model)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if hasattr(self.model, "forward_head"):
            features = self.model.forward_head(self.model.forward_features(pixel_values), pre_logits=True)
            return self.model.get_classifier()(features), features
        features = self.model.resnet(pixel_values).pooler_output.flatten(1)
        return self.model.classifier(features), features


def export_expert(expert: Expert, home: str, folder: Path, images: list[torch.Tensor]) -> Export:
    """Export the network of an expert to `experts/<home>/onnx/model.onnx`, and say what the config records of it."""
    height, width = expert.entry.transform.size
    path = folder / "experts" / home / "onnx" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch itself
        torch.onnx.export(
            Network(expert).eval(),
            (torch.zeros(2, 3, height, width),),
            path,
            input_names=["pixel_values"],
            output_names=["logits", "features"],
            dynamo=True,
            dynamic_shapes={"pixel_values": {0: Dim("batch", min=1)}},
            external_data=False,
            verbose=False,
        )
    return Export(
        path.relative_to(folder).as_posix(),
        hashlib.sha256(path.read_bytes()).hexdigest(),
        expert.entry.revision,
        18,
        (3, height, width),
        has_features=True,
        host_pixels=measure_host_pixels(expert, images),
    )


def save_exported(model: PertinenceForImageClassification, folder: Path, images: list[torch.Tensor]) -> Path:
    """Save a model with its experts, and export these; `images` measure the agreement of pixels."""
    model.save_pretrained(folder, save_experts=True)
    homes = {str(index): expert for index, expert in enumerate(model.experts)}
    if model.stem is not None:
        homes["stem"] = model.stem
    exports = {home: export_expert(expert, home, folder, images) for home, expert in homes.items()}

    def add(values: dict[str, Any]) -> None:
        for home, entry in {**dict(enumerate(values["experts"])), "stem": values["stem"]}.items():
            if entry is not None:
                entry["exports"] = [exports[str(home)].to_dict()]

    change_config(folder, add)
    return folder


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
    folder = save_exported(full, root / "model", list(images(32, 90, seed=7)))
    return SimpleNamespace(folder=folder, full=full)
