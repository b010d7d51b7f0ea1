"""Settings of the conversion of a training program's file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...utils.settings import Settings, setting


INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos")


@dataclass
class ConversionArguments(Settings):
    """What a file of weights does not say of its network, its labels and its images."""

    architecture: str | None = setting(
        None, "Name of the network in timm, or in torchvision; default: the one that the file records.", group="model"
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
        "Side of the network's images, in pixels; default, as for the next four: what the file records, else that of "
        "the architecture.",
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
