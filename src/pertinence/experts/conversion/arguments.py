"""Settings of the conversion of a file of weights."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...utils.errors import MALFORMED, PertinenceError, shown
from ...utils.settings import Settings, setting


INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos")


@dataclass
class ConversionArguments(Settings):
    """What neither a file of weights nor a `config.json` beside it says of its network, its labels and its images.

    What is given here wins over what they record.
    """

    architecture: str | None = setting(
        None,
        "Name of the network in timm, or in torchvision; default, as for all that follows: what the file records, "
        "else a config.json of timm beside it. A flag wins over both.",
        group="model",
    )
    model_kwargs: list[str] | dict[Any, Any] | None = setting(
        None,
        "Arguments of timm.create_model, as in timm's train script: act_layer=gelu img_size=256; they win one by one.",
        group="model",
        metavar="KEY=VALUE",
    )
    labels: str | dict[Any, Any] | None = setting(
        None,
        "File with the names of the labels, in the order of the outputs: one a line, or JSON (id2label).",
        group="data",
        metavar="FILE",
    )
    ema: bool | None = setting(
        None, "Take the moving average of the weights (EMA); default: if the file has one.", group="model"
    )
    image_size: int | None = setting(
        None,
        "Side of the network's images, in pixels; default, as for the next four: what is recorded, else that of the "
        "architecture.",
        group="data",
        least=1,
    )
    mean: list[float] | None = setting(
        None, "Mean of the pixels, which lie between 0 and 1: three numbers, or one.", group="data"
    )
    std: list[float] | None = setting(None, "Their standard deviation: three numbers, or one.", group="data")
    interpolation: str | None = setting(None, "How images are resized.", group="data", choices=INTERPOLATIONS)
    crop_pct: float | None = setting(
        None, "Share of the resized image that the middle crop takes, up to 1.", group="data", above=0
    )
    output_dir: str | None = setting(None, "New folder for the expert.", group="output")

    @property
    def describes(self) -> bool:
        """Whether anything is given besides the folder to write."""
        return any(getattr(self, one.name) is not None for one in self.settings() if one.name != "output_dir")


def parse_model_kwargs(given: list[str] | Mapping[Any, Any] | None) -> dict[str, Any]:
    """Arguments of timm's `create_model` from a mapping, or from words as timm's train script takes them.

    Raises:
        PertinenceError: a word is not `KEY=VALUE`.
    """
    if given is None or isinstance(given, Mapping):
        return {str(key): value for key, value in (given or {}).items()}
    found = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not (key.isidentifier() and equals):
            raise PertinenceError(f"model_kwargs has {shown(word)}, expected KEY=VALUE, such as act_layer=gelu")
        try:
            found[key] = ast.literal_eval(value)
        except (*MALFORMED, SyntaxError, MemoryError):
            found[key] = value  # text needs no quotes
    return found
