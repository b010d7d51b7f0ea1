"""The network in timm whose weights a file holds."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from ...runtime.transform import MAX_SIDE
from ...utils.errors import MALFORMED, PertinenceError, explain, shown
from ...utils.validation import is_whole
from ..audit import OF_FACTORY
from ..building import building_from
from ..checkpoint_files import Tensors
from .torchvision_networks import NAMES, Counterpart, answer_alike, counterparts, torchvision_names
from .training_files import TrainingFile, Weights
from .weight_matching import (
    check_counts,
    explain_mismatch,
    have_same_sizes,
    matched_by_size,
    shapes_of,
    without_prefix,
)


RECORDED = {"gp": "global_pool", "bn_eps": "bn_eps"}
"""Settings of timm's train script that change the network, and the options of timm that they set."""
NOT_OF_NETWORK = OF_FACTORY | {"features_only", "out_indices", "feature_cls", "kwargs_filter", "device", "dtype"}
"""Arguments of `timm.create_model` that make something else than a classifier with these weights, or do nothing."""
MOST_TRIED = 12
"""How many similar architectures are compared with weights that do not fit."""


@dataclass(frozen=True)
class TimmNetwork:
    """A network of timm with the weights of a file.

    Attributes:
        module: the network, in float32 on the CPU, in evaluation mode.
        architecture: its name in timm, without the tag of pretrained weights.
        options: arguments of `timm.create_model` that it needs besides the number of classes.
        preprocessing: timm's `pretrained_cfg` of the name, or what torchvision does for its own network.
        origin: where the preprocessing is from, for messages.
        beside: names of tensors in the file that belong to no part of the network.
    """

    module: Any  # a module of timm, with `pretrained_cfg`
    architecture: str
    options: dict[str, Any]
    preprocessing: dict[str, Any]
    origin: str
    beside: list[str]


def base_name(architecture: str) -> str:
    """A name without the tag of pretrained weights: `resnet18` of `resnet18.a1_in1k`."""
    return architecture.partition(".")[0]


def check_architecture(name: str) -> None:
    """Raise `PertinenceError` unless timm knows a network of this name, or the counterpart of one of torchvision."""
    if name in torchvision_names():
        if timm.is_model(counterparts(name)[0].timm_name):
            return
        raise PertinenceError(f"timm has no network that answers like torchvision's {name}, so it cannot be converted")
    if not timm.is_model(base_name(name)):
        known = sorted({*timm.list_models(), *torchvision_names()})
        near = difflib.get_close_matches(base_name(name), known, n=4, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`timm.list_models()` lists all"
        raise PertinenceError(f"timm knows no architecture {shown(name)}: {hint}")
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        raise PertinenceError(f"architecture {shown(name)}: {error} Leave the tag out") from error


def check_options(given: Mapping[str, Any], image_size: int | None) -> dict[str, Any]:
    """Arguments of `timm.create_model` that a user gave, as plain values; whether the network knows them shows later.

    Args:
        given: the arguments.
        image_size: side of the images, if that is given, too.

    Raises:
        PertinenceError: one does not describe a network for colour images, contradicts the size of the images, or is
            no plain value.
    """
    if wrong := sorted(NOT_OF_NETWORK & given.keys()):
        raise PertinenceError(f"model_kwargs has {', '.join(wrong)}, which does not describe a network: leave it out")
    if "num_classes" in given:
        raise PertinenceError("model_kwargs has num_classes, which is the number of label names: leave it out")
    if given.get("in_chans") not in (None, 3):
        raise PertinenceError(f"model_kwargs has in_chans={shown(given['in_chans'])}, expected 3 (RGB)")
    try:
        options = _plain(given)
    except MALFORMED as error:
        raise PertinenceError(f"model_kwargs has what is no plain value ({explain(error)})") from error
    side = options.get("img_size")
    if side is not None and not is_whole(side, 1, MAX_SIDE):
        raise PertinenceError(f"model_kwargs has img_size={shown(side)}, expected a side of up to {MAX_SIDE} pixels")
    if side is not None and image_size not in (None, side):
        raise PertinenceError(f"image_size={image_size} and img_size={side} of model_kwargs differ: give one of them")
    return options


def recorded_options(file: TrainingFile, architecture: str) -> dict[str, Any]:
    """The options of its network that timm's train script, or its `config.json`, recorded with a file.

    Raises:
        PertinenceError: an option is not a plain value, or the images are not in colour.
    """
    if file.architecture is None or base_name(file.architecture) != base_name(architecture):
        return {}
    found = file.settings.get("model_kwargs")
    options = {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}
    recorded = {ours: file.settings.get(theirs) for theirs, ours in RECORDED.items()}
    options |= {name: value for name, value in recorded.items() if value is not None}
    channels = options.get("in_chans") or file.settings.get("in_chans")
    if channels not in (None, 3):
        raise PertinenceError(f"{file.path} takes images of {shown(channels)} channels, expected 3 (RGB)")
    try:
        return _plain(options)
    except MALFORMED as error:
        raise PertinenceError(f"{file.path} records options of its network that are not plain values") from error


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that describe the network, in values of JSON."""
    left_out = {*NOT_OF_NETWORK, "num_classes", "in_chans"}
    kept = {name: value for name, value in options.items() if name not in left_out and value is not None}
    return dict(json.loads(json.dumps(kept, allow_nan=False)))


def find_network(
    file: TrainingFile,
    architecture: str,
    num_classes: int,
    image_size: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> TimmNetwork:
    """Make the network of timm that has the weights of a file.

    Weights of torchvision are accepted if torchvision's own network with these weights gives the same logits.

    Args:
        file: the weights.
        architecture: name of the network in timm, with or without a tag, or in torchvision.
        num_classes: number of labels.
        image_size: side of its images, in pixels; default: that of the architecture.
        given: arguments of `timm.create_model` (see `check_options`), which win over those that are recorded.

    Raises:
        PertinenceError: the network does not know an argument, the weights do not fit it, or it does not answer like
            torchvision's.
    """
    given, twins = dict(given or {}), counterparts(base_name(architecture))
    options = {**recorded_options(file, architecture), **given}
    name = architecture if timm.is_model(base_name(architecture)) else twins[0].timm_name
    is_of_timm = file.architecture is not None and base_name(file.architecture) == base_name(name)
    defaults, origin = _pretrained_cfg(name), f"timm's defaults for {name}"
    module, options = _make(file.weights, name, num_classes, options, defaults, image_size)
    weights, beside = without_prefix(file.weights, module.state_dict())
    own, wanted = shapes_of(weights), shapes_of(module.state_dict())
    if own == wanted:
        _load(module, weights, file.path)
        for twin in () if options else twins:  # torchvision has no options of timm
            origin += _compare_twin(file, weights, twin, module, defaults, image_size)
        return TimmNetwork(module, base_name(name), options, defaults, origin, beside)
    for twin in twins:
        found = _from_torchvision(file, twin, num_classes, image_size, given)
        if found is not None:
            return found
    if is_of_timm and (renamed := _renamed_by_timm(weights, module, name, options)) is not None:
        _load(module, renamed, file.path)
        return TimmNetwork(module, base_name(name), options, defaults, origin, beside)
    check_counts(file.path, own, wanted, _classifiers(module), num_classes)
    message = explain_mismatch(file.path, base_name(name), own, wanted)
    raise PertinenceError(
        f"{message}; {_suggest(file, name, num_classes, is_near=bool(own.items() & wanted.items()))}"
    )


def _pretrained_cfg(name: str) -> dict[str, Any]:
    found = get_pretrained_cfg(name)
    return {"input_size": (3, 224, 224), **(found.to_dict() if found is not None else {})}


def _make(
    weights: Weights,
    name: str,
    num_classes: int,
    options: dict[str, Any],
    defaults: Mapping[str, Any],
    image_size: int | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A network of timm about as large as its weights, and its options: those given, and a fixed size of images."""
    options = _sized(options, defaults, image_size)
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    try:
        with building_from(Tensors(shapes, {})):
            return timm.create_model(name, num_classes=num_classes, **options).eval(), options
    except PertinenceError:
        raise PertinenceError(f"{name} is a much larger network than the weights in the file: name another") from None
    except (*MALFORMED, AssertionError, RuntimeError) as error:
        given = ", ".join(f"{key}={shown(value)}" for key, value in options.items())
        raise PertinenceError(
            f"timm cannot make {name} with {given or 'its own options'} ({explain(error)})"
        ) from error


def _sized(options: dict[str, Any], defaults: Mapping[str, Any], image_size: int | None) -> dict[str, Any]:
    """Options of a network that its weights tie to one size of images: that size, if it is not the usual one."""
    is_tied = defaults.get("fixed_input_size") and not options.get("dynamic_img_size")
    if not is_tied or options.get("strict_img_size") is False:
        return options
    others = {name: value for name, value in options.items() if name != "img_size"}
    return others if image_size in (None, defaults["input_size"][-1]) else {**others, "img_size": image_size}


def _load(module: nn.Module, weights: Weights, path: Path) -> None:
    """Load weights that fit a network; counters that they lack keep their value."""
    own = module.state_dict()
    for name in own.keys() & weights.keys():
        if own[name].is_floating_point() and not weights[name].is_floating_point():
            raise PertinenceError(f"{path} holds whole numbers ({weights[name].dtype}) as {name}: it is quantized")
        own[name] = weights[name]
    module.load_state_dict(own)


def _compare_twin(
    file: TrainingFile,
    weights: Weights,
    twin: Counterpart,
    module: Any,
    defaults: Mapping[str, Any],
    image_size: int | None,
) -> str:
    """Refuse weights that fit networks of timm and of torchvision which answer differently.

    Returns:
        A remark on the preprocessing: it is not known which of the libraries trained the network.
    """
    if twin.name in NAMES:  # these have other names of weights
        return ""
    size = image_size or defaults["input_size"][-1]
    other = twin.make(module.num_classes, size)
    if shapes_of(other.state_dict()) != shapes_of(weights):
        return ""
    _load(other, weights, file.path)
    if not answer_alike(module, other, size):
        raise PertinenceError(
            f"the weights in {file.path} fit {twin.name} of timm and of torchvision, which answer differently"
        )
    usual = twin.preprocessing()
    return f"; torchvision's: {usual['interpolation']}, crop {usual['crop_pct']:.3g}"


def _from_torchvision(
    file: TrainingFile, twin: Counterpart, num_classes: int, image_size: int | None, given: dict[str, Any]
) -> TimmNetwork | None:
    """The network of timm that answers like torchvision's with the weights of a file; None if they do not fit that."""
    defaults = {**_pretrained_cfg(twin.timm_name), **twin.preprocessing()}
    size = image_size or defaults["input_size"][-1]
    other = twin.make(num_classes, size)
    weights, beside = without_prefix(file.weights, other.state_dict())
    if shapes_of(weights) != shapes_of(other.state_dict()):
        check_counts(file.path, shapes_of(weights), shapes_of(other.state_dict()), _classifiers(other), num_classes)
        return None
    _load(other, weights, file.path)
    module, options = _make(weights, twin.timm_name, num_classes, {**twin.options, **given}, defaults, size)
    for candidate in _translations(weights, module, twin):
        _load(module, candidate, file.path)
        if answer_alike(module, other, size):
            origin = f"torchvision's defaults for {twin.name}"
            return TimmNetwork(module, twin.timm_name, options, defaults, origin, beside)
    raise PertinenceError(
        f"timm has no network that answers like torchvision's {twin.name}, so {file.path} cannot be converted"
    )


def _translations(weights: Weights, module: nn.Module, twin: Counterpart) -> Iterator[Weights]:
    """Guesses which of torchvision's weights belong where in a network of timm."""
    if (matched := matched_by_size(weights, module)) is not None:
        yield matched
    if (renamed := _renamed_by_timm(weights, module, twin.timm_name, twin.options)) is not None:
        yield renamed


def _renamed_by_timm(weights: Weights, module: nn.Module, name: str, options: dict[str, Any]) -> Weights | None:
    """Weights as timm's own loader of pre-trained weights renames them; None if it cannot, or changes their sizes."""
    num_classes = module.num_classes
    if not have_same_sizes(weights, module.state_dict()):
        return None  # timm would interpolate, or leave out
    overlay = {"state_dict": dict(weights), "num_classes": num_classes, "label_offset": None, "custom_load": False}
    with suppress(*MALFORMED, AssertionError, RuntimeError):
        return timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes, **options
        ).state_dict()
    return None


def _classifiers(module: nn.Module) -> set[str]:
    """Names of a network's last layers: those whose names timm gives, or the last linear layer."""
    given = (getattr(module, "pretrained_cfg", None) or {}).get("classifier")
    if given:
        return {given} if isinstance(given, str) else set(given)
    return set([name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1:])


def _suggest(file: TrainingFile, name: str, num_classes: int, is_near: bool) -> str:
    """Name another architecture whose weights a file may hold; one of a similar name, if some weights fit."""
    recorded = file.architecture
    if recorded is not None and timm.is_model(base_name(recorded)) and base_name(recorded) != base_name(name):
        return f"the file records the architecture {shown(recorded)}"
    near = difflib.get_close_matches(base_name(name), timm.list_models(), n=MOST_TRIED, cutoff=0.5) if is_near else []
    others = (other for other in near if other != base_name(name))
    fitting = next((other for other in others if _fits(file.weights, other, num_classes)), None)
    return f"they are those of {fitting}" if fitting else "give the --architecture that was trained"


def _fits(weights: Weights, name: str, num_classes: int) -> bool:
    """Whether all weights but those of the last layer have the names and shapes of a network of timm."""
    with suppress(Exception), torch.device("meta"):  # some networks cannot be made without memory
        module = timm.create_model(name, num_classes=num_classes)
        inner, _ = without_prefix(weights, module.state_dict())
        own, wanted = shapes_of(inner), shapes_of(module.state_dict())
        last = {key for key in wanted if key.rpartition(".")[0] in _classifiers(module)}
        return own.keys() == wanted.keys() and all(own[key] == wanted[key] for key in wanted.keys() - last)
    return False
