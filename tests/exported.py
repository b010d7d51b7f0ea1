"""Models of tiny experts whose networks were exported to ONNX, made by hand."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from pertinence import PertinenceForImageClassification
from pertinence.experts.expert import Expert
from pertinence.experts.host_pixels import measure_host_pixels
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
