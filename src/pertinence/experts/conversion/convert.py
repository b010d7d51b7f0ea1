"""From a file of a training program to an expert: a folder that transformers, timm and this package load."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from ...data.label_files import read_label_names
from ...utils.errors import MALFORMED, PertinenceError, explain, printable, shown
from ...utils.io import give_usual_mode, replaced
from ...utils.validation import is_whole
from ..audit import LEAST_CROP
from ..checkpoint_files import SINGLE
from ..entry import CONFIG
from ..expert import load_expert
from ..reference import ExpertReference, LoadOptions
from ..transforms import MAX_SIDE
from .arguments import ConversionArguments
from .timm_networks import TimmNetwork, base_name, check_architecture, find_network
from .torchvision_networks import AGREEMENT, logits_of
from .training_files import TrainingFile, read_training_file


logger = logging.get_logger(__name__)

DESCRIBE = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
"""What timm's `pretrained_cfg` says of preprocessing."""
ABOUT_NETWORK = ("first_conv", "classifier", "fixed_input_size", "min_input_size")
"""What else of it holds for other weights: neither licence nor labels nor origin."""
SAMPLES = ((1.0, 1.0), (1.2, 1.6), (2.1, 1.3))
"""Height and width of the sample images, as multiples of the network's own."""


@dataclass(frozen=True)
class Conversion:
    """An expert that was converted; `str` of it is a report.

    Attributes:
        folder: the folder of the expert.
        architecture: name of its network in timm.
        labels: names of its labels, in the order of the outputs.
        source: which weights of the file it has.
        preprocessing: what is done to images, and where that is from.
        difference: largest difference of the logits that transformers, timm and this package give with the folder to
            those of the network with the file's weights.
    """

    folder: Path
    architecture: str
    labels: list[str]
    source: str
    preprocessing: str
    difference: float

    def __str__(self) -> str:
        return "\n".join(
            [
                f"Weights: {self.source}",
                f"Network: timm's {self.architecture}, {len(self.labels)} labels ({self.labels[0]}, ..., "
                f"{self.labels[-1]})",
                f"Images: {self.preprocessing}",
                f"Checked: on {len(SAMPLES)} sample images transformers, timm and pertinence give the logits of the "
                f"file's weights (largest difference {self.difference:.1g})",
                f"Saved to {self.folder}",
            ]
        )


def convert_checkpoint(file: str | Path, args: ConversionArguments) -> Conversion:
    """Convert a file of weights to a folder that transformers, timm and this package load as an expert.

    The file is one of timm's train script (`.pth.tar`), a state dict (`.pth`, `.pt`, `.bin`, `.safetensors`), or one
    of Lightning (`.ckpt`), torchvision, accelerate or `Trainer`; its network is one of timm, or one of torchvision
    that timm has, too. It is read without running anything. The folder is written completely or not at all, and
    only if its logits are those of the file's weights on sample images.

    Args:
        file: the file of weights.
        args: what the file does not say, see [`ConversionArguments`]; `labels` and `output_dir` are required.

    Raises:
        PertinenceError: a setting is missing, the file cannot be read safely, its weights are not those of the
            network, or the folder exists.
    """
    path = Path(file)
    if args.labels is None:
        raise PertinenceError("the names of the labels are missing: give a file, --labels FILE (one name a line)")
    folder = _check_folder(args.output_dir)
    _check_numbers(args)
    labels = read_label_names(args.labels)
    if args.architecture is not None:
        check_architecture(args.architecture)
    source = read_training_file(path, args.ema)
    architecture = args.architecture or _known(source.architecture)
    if architecture is None:
        raise PertinenceError(f"{path} does not say of which architecture it is: give its name, --architecture NAME")
    recorded = _recorded_preprocessing(source, architecture)
    size = args.image_size or _side(recorded, path)
    network = find_network(source, architecture, len(labels), size)
    if network.beside:
        names = ", ".join(printable(name, 80) for name in network.beside[:5])
        logger.warning(
            f"{path} has tensors that are no part of the network and are left out: {names}"
            f"{', ...' if len(network.beside) > 5 else ''}."
        )
    steps, described = _choose_preprocessing(args, recorded, network)
    with replaced(folder) as written:
        _write(written, network, steps, labels)
        difference = _check_written(written, network, steps, labels)
    return Conversion(folder, network.architecture, labels, source.source, described, difference)


def _known(recorded: str | None) -> str | None:
    """The architecture that a file records, if timm knows it: some programs record the name of a class."""
    if recorded is not None:
        with suppress(PertinenceError):
            check_architecture(recorded)
            return recorded
    return None


def _check_folder(output_dir: str | None) -> Path:
    if output_dir is None:
        raise PertinenceError("the folder to write is missing: give a new one, --output-dir DIR")
    folder = Path(output_dir)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise PertinenceError(f"{folder} exists: choose another --output-dir, or remove it first")
    return Path(os.path.abspath(folder))


def _check_numbers(args: ConversionArguments) -> None:
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


def _recorded_preprocessing(file: TrainingFile, architecture: str) -> dict[str, Any]:
    """What the train scripts of timm, DeiT and torchvision record of the images that they measure accuracy on."""
    if file.architecture is None or base_name(file.architecture) != base_name(architecture):
        return {}
    found = {name: file.settings.get(name) for name in ("img_size", *DESCRIBE)}
    crop, resize = file.settings.get("val_crop_size"), file.settings.get("val_resize_size")
    if isinstance(crop, int) and isinstance(resize, int) and resize > 0:
        found |= {"img_size": crop, "crop_pct": crop / resize}
    if isinstance(found["input_size"], int):
        found |= {"img_size": found["input_size"], "input_size": None}
    return {name: value for name, value in found.items() if value is not None}


def _side(recorded: Mapping[str, Any], path: Path) -> int | None:
    """The side of the images that a file records, in pixels."""
    sides = recorded.get("input_size")
    given = list(sides) if isinstance(sides, (list, tuple)) and sides else [recorded.get("img_size")]
    for side in given if given != [None] else ():
        if not is_whole(side, 1, MAX_SIDE):
            raise PertinenceError(f"{path} records images of {shown(side)} pixels a side: give --image-size")
    return given[-1]


def _choose_preprocessing(
    args: ConversionArguments, recorded: dict[str, Any], network: TimmNetwork
) -> tuple[dict[str, Any], str]:
    """The preprocessing, as timm resolves it from what is given, recorded and usual; and a line that says it."""
    given = {name: getattr(args, name) for name in ("mean", "std", "interpolation", "crop_pct")}
    given = {name: value for name, value in given.items() if value is not None}
    if args.image_size is not None:
        given["input_size"] = (3, args.image_size, args.image_size)
    try:
        steps = resolve_data_config(args={**recorded, **given}, pretrained_cfg=network.preprocessing)
        create_transform(**steps, is_training=False)
        channels, height, width = steps["input_size"]
        mean, std = (", ".join(f"{value:.3g}" for value in steps[name]) for name in ("mean", "std"))
        if channels != 3 or not LEAST_CROP <= steps["crop_pct"] <= 1:
            raise ValueError(f"{channels} channels, crop_pct {steps['crop_pct']}")
    except (*MALFORMED, AssertionError) as error:
        raise PertinenceError(
            f"the preprocessing that the file records makes no sense ({explain(error)}): give --image-size, --mean, "
            "--std, --interpolation and --crop-pct"
        ) from error
    parts = [
        "given" if given else "",
        "recorded in the file" if recorded.keys() - given.keys() else "",
        network.origin,
    ]
    return steps, (
        f"{height} x {width} pixels, {steps['interpolation']}, crop {steps['crop_pct']:.3g}, "
        f"mean {mean}, std {std} ({', then '.join(filter(None, parts))})"
    )


def _write(folder: Path, network: TimmNetwork, steps: dict[str, Any], labels: list[str]) -> None:
    """Write a folder in the layout of timm's repositories on the Hub."""
    usual = network.module.pretrained_cfg
    network.module.pretrained_cfg = {
        "architecture": network.architecture,
        **{name: usual[name] for name in ABOUT_NETWORK if name in usual},
        "num_classes": len(labels),
        **steps,
    }
    try:
        save_for_hf(network.module, str(folder), {"label_names": labels}, safe_serialization=True)
    except RuntimeError as error:
        raise PertinenceError(
            f"timm's {network.architecture} cannot be saved in safetensors ({explain(error)})"
        ) from error
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    # transformers gives timm the number of classes itself, and fails if it is here, too.
    config["model_args"] = network.options
    config["pretrained_cfg"] |= {**steps, "num_classes": len(labels)}
    config = {name: value for name, value in config.items() if value != {}}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    give_usual_mode(folder / SINGLE)


@torch.inference_mode()
def _check_written(folder: Path, network: TimmNetwork, steps: dict[str, Any], labels: list[str]) -> float:
    """The largest difference of logits between the network in memory and the folder as three libraries load it.

    Raises:
        PertinenceError: a library cannot load it, or answers differently.
    """
    images = _sample_images(*steps["input_size"][1:])
    transform = create_transform(**steps, is_training=False)
    expected = torch.cat([logits_of(network.module, transform(image)[None]) for image in images])
    if not expected.isfinite().all():
        raise PertinenceError("the weights in the file give NaN or infinite scores: take those of an earlier epoch")
    # Logits that hardly differ between classes must agree more closely.
    largest, tolerance = 0.0, AGREEMENT * min(1.0, expected.std().item())
    for library, answers in {"transformers": _transformers, "timm": _timm, "pertinence": _own}.items():
        try:
            with _quiet():
                logits, names = answers(folder, images)
        except Exception as error:  # libraries raise anything
            reason = str(error) if isinstance(error, PertinenceError) else explain(error)
            raise PertinenceError(f"{library} cannot load timm's {network.architecture} as saved: {reason}") from error
        difference = (logits - expected).abs().max().item() if logits.shape == expected.shape else np.inf
        agrees = logits.shape == expected.shape and torch.allclose(logits, expected, rtol=AGREEMENT, atol=tolerance)
        if not agrees or names not in (None, labels):
            raise PertinenceError(
                f"{library} gives other answers with timm's {network.architecture} as saved than the network with the "
                f"file's weights (logits differ by {difference:.1g}), so it is not converted"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and warnings, which are about files that the user has not loaded."""
    level, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bars:
            logging.enable_progress_bar()


def _sample_images(height: int, width: int) -> list[Image.Image]:
    """Coloured blobs of several shapes, the same each time."""
    numbers = np.random.default_rng(0)
    coarse = [Image.fromarray(numbers.integers(0, 256, (7, 7, 3), dtype=np.uint8)) for _ in SAMPLES]
    sizes = [(round(width * across), round(height * down)) for down, across in SAMPLES]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(coarse, sizes, strict=True)]


def _transformers(folder: Path, images: list[Image.Image]) -> tuple[torch.Tensor, list[str] | None]:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    logits = torch.cat([model(**processor(image, return_tensors="pt")).logits for image in images])
    return logits, [model.config.id2label[index] for index in range(model.config.num_labels)]


def _timm(folder: Path, images: list[Image.Image]) -> tuple[torch.Tensor, list[str] | None]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model), is_training=False)
    return torch.cat([model(transform(image)[None]) for image in images]), None


def _own(folder: Path, images: list[Image.Image]) -> tuple[torch.Tensor, list[str] | None]:
    expert = load_expert(ExpertReference.parse(folder), LoadOptions())
    pixels = [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) for image in images]
    return torch.cat([expert(image[None])[0] for image in pixels]), list(expert.labels.values())
