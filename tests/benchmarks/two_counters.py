"""The two counters of operations on the architectures of timm and transformers: how many agree, and what the others
differ in.

    uv run python tests/benchmarks/two_counters.py            # all, about a quarter of an hour on one core
    uv run python tests/benchmarks/two_counters.py vit swin   # those whose family has such a name

One architecture of each family of timm, and each classifier of transformers, with random weights. Nothing is
downloaded. It prints one line for each architecture, and the table of `docs/how-it-works.md` at the end.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSIFIERS

from pertinence.experts.operations import count_operations


SMALL = r"(atto|femto|pico|nano|xxs|xxt|tiny|_t\b|_xs|_s\b|_n\b|small|_b0|_050|s12|m0|lite0|18|26|_0|_s0)"
"""What the names of small architectures have in common."""
MOST_PARAMETERS = 150e6
OTHERS = ("ImageGPT", "Perceiver", "Pertinence", "Siglip2", "TimmWrapper")
"""Classifiers of transformers that take no plain images, or that are not its own."""


class Logits(torch.nn.Module):
    """A network of timm with the interface of transformers."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> Any:
        output = self.network(pixel_values)
        return transformers.modeling_outputs.ImageClassifierOutput(logits=output)


def of_timm() -> Iterator[tuple[str, Any]]:
    """The smallest architecture of each family, by its name: (name, a function that builds it)."""
    for module in timm.list_modules():
        names = sorted(timm.list_models(module=module), key=lambda name: (not re.search(SMALL, name), len(name)))
        if names:
            yield names[0], partial(_build_timm, names[0])


def _build_timm(name: str) -> tuple[torch.nn.Module, tuple[int, int]]:
    network = timm.create_model(name, num_classes=10)
    height, width = timm.data.resolve_model_data_config(network)["input_size"][1:]
    return Logits(network), (height, width)


def of_transformers() -> Iterator[tuple[str, Any]]:
    for config_class, model_class in CLASSIFIERS.items():
        for one in model_class if isinstance(model_class, tuple) else (model_class,):
            if not one.__name__.startswith(OTHERS):
                yield one.__name__, partial(_build_transformers, config_class, one)


def _build_transformers(config_class: Any, model_class: Any) -> tuple[torch.nn.Module, tuple[int, int]]:
    config = config_class(num_labels=10)
    if isinstance(getattr(config, "num_hidden_layers", None), int) and not hasattr(config, "depths"):
        config.num_hidden_layers = min(config.num_hidden_layers, 2)
    size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    side = max(size) if isinstance(size, (list, tuple)) else size or 224
    return model_class(config), (side, side)


def main(families: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    counted, rows, failed = 0, [], []
    for library, listing in (("timm", of_timm()), ("transformers", of_transformers())):
        for name, build in listing:
            if families and not any(family in name.lower() for family in families):
                continue
            try:
                model, size = build()
                if sum(parameter.numel() for parameter in model.parameters()) > MOST_PARAMETERS:
                    continue
                found = count_operations(model.eval().requires_grad_(False), size)
            except Exception as error:  # a family may need another library, or a config of its own
                failed.append(f"{name} ({type(error).__name__}: {str(error).splitlines()[0][-120:]})")
                print(f"{library:13}{name:45} {failed[-1]}", flush=True)
                continue
            counted += 1
            print(f"{library:13}{name:45} {size[0]:4} {found.gmacs:8.4f}  {found.note or 'agree'}", flush=True)
            if found.note:
                rows.append(f"| {library} | {name} | {found.gmacs:.4g} | {found.note} |")
    print(f"\n{counted} architectures, {counted - len(rows)} agree; not built: {'; '.join(failed) or 'none'}\n")
    print("\n".join(["| library | architecture | GMACs | what is said |", "| --- | --- | ---: | --- |", *rows]))


if __name__ == "__main__":
    main([family.lower() for family in sys.argv[1:]])
