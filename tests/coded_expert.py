"""An expert that brings code of its own, in two modules of which one imports the other."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


CONFIGURATION = """
from transformers import PreTrainedConfig


class PatchConfig(PreTrainedConfig):
    model_type = "patches"
"""
MODELING = """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_patches import PatchConfig

SCALE = 1


class PatchClassifier(PreTrainedModel):
    config_class = PatchConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.classifier = nn.Linear(8, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        return ImageClassifierOutput(logits=SCALE * self.classifier(self.patch(pixel_values).mean((2, 3))))
"""
PROCESSOR = """
from transformers import ViTImageProcessor


class PatchProcessor(ViTImageProcessor):
    pass
"""
CODE = {"configuration_patches": CONFIGURATION, "modeling_patches": MODELING, "processing_patches": PROCESSOR}


def write_code(folder: Path, *modules: str, scale: int = 1) -> Path:
    """Write modules of the code (default: all); answers are multiplied by `scale`."""
    folder.mkdir(exist_ok=True)
    for name in modules or CODE:
        (folder / f"{name}.py").write_text(CODE[name].replace("SCALE = 1", f"SCALE = {scale}"))
    return folder


def save_coded_expert(folder: Path, code_in: str | None = None, processor_in: str | None = None, **config) -> Path:
    """Write an expert of ten labels for images of 16 x 16, with its code beside it or in other repositories."""
    folder.mkdir()
    places = [f"{place}--" if place else "" for place in (code_in, processor_in)]
    generator = torch.Generator().manual_seed(0)
    weights = {
        "patch.weight": (8, 3, 4, 4),
        "patch.bias": (8,),
        "classifier.weight": (10, 8),
        "classifier.bias": (10,),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in weights.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    labels = {str(index): f"digit {index}" for index in range(10)}
    auto_map = {
        "AutoConfig": f"{places[0]}configuration_patches.PatchConfig",
        "AutoModelForImageClassification": f"{places[0]}modeling_patches.PatchClassifier",
    }
    values = {"model_type": "patches", "auto_map": auto_map, "id2label": labels, **config}
    (folder / "config.json").write_text(json.dumps(values))
    described = {
        "image_processor_type": "PatchProcessor",
        "auto_map": {"AutoImageProcessor": f"{places[1]}processing_patches.PatchProcessor"},
        "size": {"height": 16, "width": 16},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    if code_in is None:
        write_code(folder, "configuration_patches", "modeling_patches")
    if processor_in is None:
        write_code(folder, "processing_patches")
    return folder
