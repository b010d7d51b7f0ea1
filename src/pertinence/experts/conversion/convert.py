"""From a file of weights, or a folder of timm, to a folder that transformers, timm and this package load."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from transformers.utils import logging

from ...data.label_files import read_label_names
from ...runtime.entry import CONFIG
from ...utils.errors import PertinenceError, explain, printable
from ...utils.io import give_usual_mode, replaced
from ..checkpoint_files import SINGLE
from ..expert import load_expert
from ..reference import ExpertReference, LoadOptions
from .arguments import ConversionArguments, parse_model_kwargs
from .checking import SAMPLES, check_written, quiet
from .preprocessing import check_numbers, choose_preprocessing, recorded_preprocessing, recorded_side
from .timm_configs import TimmConfig, described_by, read_timm_config, weights_in
from .timm_networks import TimmNetwork, check_architecture, check_options, find_network
from .training_files import read_training_file


logger = logging.get_logger(__name__)

ABOUT_NETWORK = ("first_conv", "classifier", "fixed_input_size", "min_input_size")
"""What of timm's `pretrained_cfg` holds for other weights: neither licence nor labels nor origin."""


@dataclass(frozen=True)
class Conversion:
    """An expert that was converted; `str` of it is a report.

    Attributes:
        folder: the folder of the expert.
        architecture: name of its network in timm.
        model_args: arguments of `timm.create_model` that its network needs, as `config.json` has them.
        labels: names of its labels, in the order of the outputs.
        source: which weights of the file it has.
        preprocessing: what is done to images, as timm's `create_transform` takes it.
        preprocessing_source: where that is from.
        difference: largest difference of the logits that transformers, timm and this package give with the folder to
            those of the network with the file's weights.
    """

    folder: Path
    architecture: str
    model_args: dict[str, Any]
    labels: list[str]
    source: str
    preprocessing: dict[str, Any]
    preprocessing_source: str
    difference: float

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.model_args.items())
        steps = self.preprocessing
        _, height, width = steps["input_size"]
        mean, std = (", ".join(f"{value:.3g}" for value in steps[name]) for name in ("mean", "std"))
        images = f"{height} x {width} pixels, {steps['interpolation']}, crop {steps['crop_pct']:.3g}"
        return "\n".join(
            [
                f"Weights: {self.source}",
                f"Network: timm's {self.architecture}{options}, {len(self.labels)} labels ({self.labels[0]}, ..., "
                f"{self.labels[-1]})",
                f"Images: {images}, mean {mean}, std {std} ({self.preprocessing_source})",
                f"Checked: on {len(SAMPLES)} sample images transformers, timm and pertinence give the logits of the "
                f"file's weights (largest difference {self.difference:.1g})",
                f"Saved to {self.folder}",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values of JSON."""
        values = {**vars(self), "output_dir": str(self.folder)}
        del values["folder"]
        return dict(json.loads(json.dumps(values)))


def convert_checkpoint(file: str | Path, args: ConversionArguments) -> Conversion:
    """Convert a file of weights to a folder that transformers, timm and this package load as an expert.

    The file is one of timm's train script (`.pth.tar`), a state dict (`.pth`, `.pt`, `.bin`, `.safetensors`), or one
    of Lightning (`.ckpt`), torchvision, accelerate or `Trainer`; its network is one of timm, or one of torchvision
    that timm has, too. It is read without running anything. The folder is written completely or not at all, and
    only if its logits are those of the file's weights on sample images.

    Args:
        file: the file of weights, or a folder that timm's `save_for_hf` wrote. A `config.json` of timm that lies with
            the weights says what `args` and the file do not.
        args: what is not recorded, or is to be otherwise, see [`ConversionArguments`]; `output_dir` is required.

    Raises:
        PertinenceError: a setting is missing, the file cannot be read safely, its weights are not those of the
            network, the folder to write exists, or the folder that is given is an expert already.
    """
    path, folder = Path(file), _check_folder(args.output_dir)
    if not path.exists():
        raise PertinenceError(f"there is no file {path}")
    check_numbers(args)
    options = check_options(parse_model_kwargs(args.model_kwargs), args.image_size)
    args = replace(args, image_size=options.get("img_size", args.image_size))
    if args.architecture is not None:
        check_architecture(args.architecture)
    config = read_timm_config(path if path.is_dir() else path.parent)
    if path.is_dir():
        _refuse_expert(path, args, config)
        path = weights_in(path)
    labels = _find_labels(args, config)
    source = read_training_file(path, args.ema)
    if config is not None:
        source = described_by(source, config, args.architecture)
    architecture = args.architecture or _known(source.architecture)
    if architecture is None:
        raise PertinenceError(f"{path} does not say of which architecture it is: give its name, --architecture NAME")
    recorded = recorded_preprocessing(source, architecture)
    size = args.image_size or recorded_side(recorded, path)
    network = find_network(source, architecture, len(labels), size, options)
    if network.beside:
        names = ", ".join(printable(name, 80) for name in network.beside[:5])
        logger.warning(
            f"{path} has tensors that are no part of the network and are left out: {names}"
            f"{', ...' if len(network.beside) > 5 else ''}."
        )
    steps, origin = choose_preprocessing(args, recorded, network, source.record)
    if size is None and "img_size" not in network.options:  # which the weights of a ViT tell
        logger.warning(
            f"{path} does not say how large its images were: {steps['input_size'][-1]} pixels a side are taken, "
            f"{network.origin}; give --image-size if it was trained on others."
        )
    descriptions = config.label_descriptions if config is not None and args.labels is None else {}
    with replaced(folder) as written:
        model_args = _write(written, network, steps, {"label_names": labels, "label_descriptions": descriptions})
        difference = check_written(written, network, steps, labels)
    return Conversion(folder, network.architecture, model_args, labels, source.source, steps, origin, difference)


def _refuse_expert(folder: Path, args: ConversionArguments, config: TimmConfig | None) -> None:
    """Refuse a folder that is an expert already, unless something of it is to be otherwise, or that is not timm's."""
    if config is not None and args.describes:
        return
    try:
        with quiet():
            load_expert(ExpertReference.parse(folder), LoadOptions())
    except PertinenceError:
        if config is None:
            raise
        return
    change = "" if config is None else ", or say what is to be otherwise, such as --labels FILE"
    raise PertinenceError(f"{folder} is an expert already: give it as it is, `--experts {folder}`{change}")


def _find_labels(args: ConversionArguments, config: TimmConfig | None) -> list[str]:
    if args.labels is not None:
        return read_label_names(args.labels)
    if config is not None and config.label_names is not None:
        return config.labels()
    raise PertinenceError("the names of the labels are missing: give a file, --labels FILE (one name a line)")


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


def _write(folder: Path, network: TimmNetwork, steps: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
    """Write a folder in the layout of timm's repositories on the Hub, and return its `model_args`."""
    usual = network.module.pretrained_cfg
    network.module.pretrained_cfg = {
        "architecture": network.architecture,
        **{name: usual[name] for name in ABOUT_NETWORK if name in usual},
        "num_classes": len(labels["label_names"]),
        **steps,
    }
    try:
        save_for_hf(network.module, str(folder), labels, safe_serialization=True)
    except RuntimeError as error:
        raise PertinenceError(
            f"timm's {network.architecture} cannot be saved in safetensors ({explain(error)})"
        ) from error
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    # transformers gives timm the number of classes itself, and fails if it is here, too.
    model_args = network.options
    size = config.get("model_args", {}).get("img_size")
    if size is not None and not config["pretrained_cfg"].get("fixed_input_size"):  # else it is that of the images
        model_args = {"img_size": size, **model_args}
    config["model_args"] = model_args
    config["pretrained_cfg"] |= {**steps, "num_classes": len(labels["label_names"])}
    config = {name: value for name, value in config.items() if value != {}}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    give_usual_mode(folder / SINGLE)
    return model_args
