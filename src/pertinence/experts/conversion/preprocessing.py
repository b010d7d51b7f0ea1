"""The preprocessing of a converted expert: what is given, then what is recorded, then what is usual."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import create_transform, resolve_data_config

from ...runtime.transform import MAX_SIDE
from ...utils.errors import MALFORMED, PertinenceError, explain, shown
from ...utils.validation import is_whole
from ..audit import LEAST_CROP
from .arguments import ConversionArguments
from .timm_networks import TimmNetwork, base_name
from .training_files import TrainingFile


DESCRIBE = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
"""What timm's `pretrained_cfg` says of preprocessing."""


def check_numbers(args: ConversionArguments) -> None:
    """Refuse settings of images that are out of range."""
    if args.image_size is not None and args.image_size > MAX_SIDE:
        raise PertinenceError(f"image_size={args.image_size} must be at most {MAX_SIDE} pixels")
    for name in ("mean", "std"):
        values = getattr(args, name)
        if values is None:
            continue
        if len(values) not in (1, 3):
            raise PertinenceError(f"{name} must be three numbers, one for each of red, green and blue, or one")
        if not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            guess = f" ({values[0] / 255:.3f} for {values[0]:g})" if values[0] > 1 else ""
            raise PertinenceError(
                f"{name}={shown(values)} must lie between 0 and 1, as pixels do: divide what is meant for 0 to 255 by "
                f"255{guess}"
            )
    if args.crop_pct is not None and not LEAST_CROP <= args.crop_pct <= 1:
        raise PertinenceError(f"crop_pct={args.crop_pct:g} must lie between {LEAST_CROP:g} and 1, as 0.875 for 87.5 %")


def recorded_preprocessing(file: TrainingFile, architecture: str) -> dict[str, Any]:
    """What the train scripts of timm, DeiT and torchvision record of the images that they measure accuracy on."""
    if file.architecture is None or base_name(file.architecture) != base_name(architecture):
        return {}
    found = {name: file.settings.get(name) for name in ("img_size", *DESCRIBE)}
    options = file.settings.get("model_kwargs")
    if found["img_size"] is None and isinstance(options, dict):
        found["img_size"] = options.get("img_size")
    crop, resize = file.settings.get("val_crop_size"), file.settings.get("val_resize_size")
    if isinstance(crop, int) and isinstance(resize, int) and resize > 0:
        found |= {"img_size": crop, "crop_pct": crop / resize}
    if isinstance(found["input_size"], int):
        found |= {"img_size": found["input_size"], "input_size": None}
    return {name: value for name, value in found.items() if value is not None}


def recorded_side(recorded: Mapping[str, Any], path: Path) -> int | None:
    """The side of the images that a file records, in pixels."""
    sides = recorded.get("input_size")
    given = list(sides) if isinstance(sides, (list, tuple)) and sides else [recorded.get("img_size")]
    for side in given if given != [None] else ():
        if not is_whole(side, 1, MAX_SIDE):
            raise PertinenceError(f"{path} records images of {shown(side)} pixels a side: give --image-size")
    return given[-1]


def choose_preprocessing(
    args: ConversionArguments, recorded: dict[str, Any], network: TimmNetwork, record: str
) -> tuple[dict[str, Any], str]:
    """The preprocessing, as timm resolves it from what is given, recorded and usual; and where it is from.

    Args:
        args: what is given.
        recorded: what is recorded with the weights.
        network: the network, with what is usual for it.
        record: what recorded it, for messages.

    Raises:
        PertinenceError: it makes no sense.
    """
    given = {name: getattr(args, name) for name in ("mean", "std", "interpolation", "crop_pct")}
    given = {name: value for name, value in given.items() if value is not None}
    if args.image_size is not None:
        given["input_size"] = (3, args.image_size, args.image_size)
    try:
        steps = resolve_data_config(args={**recorded, **given}, pretrained_cfg=network.preprocessing)
        create_transform(**steps, is_training=False)
        channels, *_ = steps["input_size"]
        if channels != 3 or not LEAST_CROP <= steps["crop_pct"] <= 1:
            raise ValueError(f"{channels} channels, crop_pct {steps['crop_pct']}")
    except (*MALFORMED, AssertionError) as error:
        raise PertinenceError(
            f"the preprocessing that {record} records makes no sense ({explain(error)}): give --image-size, --mean, "
            "--std, --interpolation and --crop-pct"
        ) from error
    parts = [
        "given" if given else "",
        f"recorded in {record}" if recorded.keys() - given.keys() else "",
        "" if {*DESCRIBE} <= recorded.keys() | given.keys() else network.origin,
    ]
    return steps, ", then ".join(filter(None, parts))
