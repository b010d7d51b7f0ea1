"""Audit of an untrusted checkpoint, before transformers and timm build anything from it.

Their loaders do what the files say: they open other repositories (adapters, architectures like `hf-hub:...`) and other
files (shards), run code (attention from the Hub, quantisers), and allocate as much memory as a number asks for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import transformers

from ..runtime.entry import ATTENTION, CONFIG, MAX_LABELS, MEANINGLESS, MODEL_TYPE
from ..runtime.transform import MAX_RESIZED_PIXELS, MAX_SIDE
from ..utils.errors import PertinenceError, printable, shown
from ..utils.validation import is_number
from .checkpoint_files import DTYPES, PROCESSORS, Tensors, expert_weights, read_json
from .mending import ADAPTER, explain_adapter
from .reference import LoadOptions


LEAST_CROP = 0.05
MOST_LAYERS = 1000
"""Largest number of layers that a setting may give, unless the checkpoint has as many tensors."""
MOST_PATCHES = 40_000
"""Largest number of patches of an image: attention between this many takes ten seconds."""

LABELS = ("id2label", "label2id", "label_names")
COUNTS = ("num_labels", "num_classes")
LAYERS = re.compile("depth|layer|block|stage|repeat", re.IGNORECASE)
WIDTHS = re.compile("(channels|sizes?|dims?|widths?)$", re.IGNORECASE)
SIDES = ("image_size", "img_size", "input_size", "test_input_size", "min_input_size")
RESIZED = (*SIDES, "size", "shortest_edge", "longest_edge", "height", "width")
PROCESSOR_CLASSES = ("image_processor_type", "feature_extractor_type")
OF_FACTORY = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_model_args",
    "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit",
}  # fmt: skip
"""Arguments of `timm.create_model` that do not describe the network but make it read other files."""


def check_checkpoint(folder: Path, trust_remote_code: bool = False) -> Tensors:
    """Check the files of a checkpoint without building anything; only the headers of the weights are read.

    Args:
        folder: folder of the checkpoint.
        trust_remote_code: whether code in the checkpoint may run; it may then have settings of its own.

    Returns:
        The headers of the weights.

    Raises:
        PertinenceError: the checkpoint refers to code or to other files, or its numbers cannot be those of an image
            classifier.
    """
    config = read_json(folder / CONFIG)
    processors = {name: read_json(folder / name) for name in PROCESSORS if (folder / name).is_file()}
    if config.get("model_type") == MODEL_TYPE:
        raise PertinenceError("it is itself a pertinence model: give its experts instead")
    if (folder / ADAPTER).exists():
        raise PertinenceError(explain_adapter(str(folder.resolve()), None, LoadOptions()))
    runs_code = trust_remote_code and any("auto_map" in values for values in (config, *processors.values()))
    for name, values in {CONFIG: config, **processors}.items():
        _check_code(values, name, trust_remote_code and "auto_map" in values)
    tensors = Tensors.of(*expert_weights(folder))
    _check_sizes(config, tensors)
    _check_labels(config)
    if not runs_code:
        _check_processors(config, processors)
    unknown = sorted(set(tensors.dtypes.values()) - DTYPES)
    if unknown:
        raise PertinenceError(f"its weights are {shown(unknown)}, expected floating-point numbers")
    return tensors


def _check_sizes(config: dict[str, Any], tensors: Tensors) -> None:
    """Refuse numbers in a config that do not fit an image classifier with these weights."""
    for key in LABELS:
        if isinstance(config.get(key), (dict, list)) and len(config[key]) > MAX_LABELS:
            raise PertinenceError(f"its config.json has more than {MAX_LABELS} labels")
    for key in COUNTS:
        if config.get(key) is not None and not is_number(config[key], 0, MAX_LABELS):
            raise PertinenceError(f"its config.json claims {shown(config[key])} labels, more than {MAX_LABELS}")
    most = max(MOST_LAYERS, len(tensors.shapes))
    numbers = list(_numbers({key: value for key, value in config.items() if key not in LABELS}))
    for key, value in numbers:
        if LAYERS.search(key) and not WIDTHS.search(key) and value > most:
            raise PertinenceError(
                f"its config.json has {printable(key)} {shown(value)}, but only {most} would have weights"
            )
        if key in SIDES and not is_number(value, -1, MAX_SIDE):
            raise PertinenceError(f"its config.json has {key} {shown(value)}, expected up to {MAX_SIDE} pixels")
    _check_resize(numbers)
    patches = [value for key, value in numbers if key == "patch_size"]
    side = max((value for key, value in numbers if key in SIDES), default=0)
    if patches and not (side / max(min(patches), 0.5)) ** 2 <= MOST_PATCHES:
        raise PertinenceError(
            f"its config.json cuts images of {shown(side)} pixels a side into patches of {shown(min(patches))}, "
            f"expected at most {MOST_PATCHES:,} patches"
        )


def _check_labels(config: dict[str, Any]) -> None:
    """Refuse names of labels that transformers could not read, or would read wrongly."""
    names, listed = config.get("id2label"), config.get("label_names")
    if names is not None and not (isinstance(names, dict) and all(re.fullmatch(r"\d+", index) for index in names)):
        raise PertinenceError(f"its config.json has id2label {shown(names)}, expected a mapping of indices to names")
    if listed is not None and not isinstance(listed, list):
        raise PertinenceError(f"its config.json has label_names {shown(listed)}, expected a list")


def _check_code(values: dict[str, Any], name: str, runs_code: bool) -> None:
    """Refuse settings of a file that make transformers or timm download or import something.

    Args:
        values: content of the file.
        name: name of the file.
        runs_code: whether the checkpoint's own code reads the settings.
    """
    for key, value in _settings(values):
        is_named = key.lstrip("_").startswith("attn_implementation") and not isinstance(value, bool)
        if is_named and value not in ATTENTION:
            raise PertinenceError(f"its {name} asks for the attention {shown(value)}, which may be code")
        is_other = key == "backbone" and isinstance(value, str) and not runs_code
        if is_other or (key.lstrip("_") in (*MEANINGLESS, "use_pretrained_backbone") and value):
            raise PertinenceError(f"its {name} has {key}, which makes transformers load other files or packages")
    architecture, arguments = values.get("architecture"), values.get("model_args")
    if architecture is not None and not (isinstance(architecture, str) and re.fullmatch(r"[\w.-]+", architecture)):
        raise PertinenceError(f"its architecture {shown(architecture)} is not the name of a network of timm")
    if isinstance(arguments, dict) and (others := sorted(OF_FACTORY & set(arguments))):
        raise PertinenceError(f"its model_args have {', '.join(others)}, which would read other files")


def _check_processors(config: dict[str, Any], processors: dict[str, dict[str, Any]]) -> None:
    """Refuse an image processor that is not for image classifiers, or that makes much larger images."""
    for name, values in {CONFIG: config, **processors}.items():
        for key, value in _settings(values):
            if key in PROCESSOR_CLASSES and isinstance(value, str):
                kind = re.sub("(Fast|Pil)+$", "", value.replace("FeatureExtractor", "ImageProcessor"))
                # Other names are custom classes: they run with trust_remote_code, or this process registered them.
                if kind not in classifier_processors() and kind in dir(transformers):  # slow, so it comes last
                    raise PertinenceError(f"its {name} asks for {shown(value)}, which is not for image classifiers")
    # If no file names a class, transformers takes that of the model's type.
    model_type = config.get("model_type")
    if isinstance(model_type, str) and not processors_of(model_type) <= classifier_processors():
        raise PertinenceError(f"its model_type {shown(model_type)} is not that of an image classifier")
    for name, values in processors.items():
        numbers = list(_numbers(values))
        _check_resize(numbers)
        for key, value in numbers:
            if not is_number(value, -MAX_SIDE, MAX_SIDE):
                raise PertinenceError(f"its {name} has {printable(key)} {shown(value)}, expected up to {MAX_SIDE}")


@cache
def classifier_processors() -> frozenset[str]:
    """Names of the image processors of transformers for classifiers and backbones: others may download files, start
    programs, or make images of any size."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_BACKBONE_MAPPING_NAMES,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )

    kinds = {*MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, *MODEL_FOR_BACKBONE_MAPPING_NAMES}
    return frozenset().union(*map(processors_of, kinds))


def processors_of(model_type: str) -> frozenset[str]:
    """Names of the image processors of transformers for a type of model."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    return frozenset((IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}).values())


def _check_resize(numbers: Sequence[tuple[str, float]]) -> None:
    """Refuse a crop so small that images are first resized to many more pixels."""
    most = math.isqrt(MAX_RESIZED_PIXELS)
    side = max((value for key, value in numbers if key in RESIZED), default=0)
    for share in (value for key, value in numbers if key.endswith("crop_pct")):
        if not share >= LEAST_CROP or side / share > most:
            raise PertinenceError(
                f"its crop_pct {shown(share)} makes images be resized to more than {most:,} pixels a side"
            )


def _settings(values: Any) -> Iterator[tuple[str, Any]]:
    """Every setting of a document at any depth: the nearest key, and the value."""
    waiting = [("", values)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((key, item) for item in value)


def _numbers(values: Any) -> Iterator[tuple[str, float]]:
    """The settings of a document that are numbers."""
    for key, value in _settings(values):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, value
