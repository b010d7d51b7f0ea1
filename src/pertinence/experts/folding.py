"""Batch norms folded into the layers before them: the same function with fewer operations, but for the last bits."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights
from transformers.utils import logging

from ..runtime.entry import ExpertEntry
from ..utils.errors import PertinenceError, explain
from .features import FeatureTap
from .loading import Checkpoint, Classifier


logger = logging.get_logger(__name__)

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
IMAGES = 4
MOST_DIFFERENCE = 1e-3
"""Largest difference of a logit or feature of the folded network, relative to the largest one."""

Pairs = list[tuple[nn.Module, nn.Module]]


def folded_network(checkpoint: Checkpoint, entry: ExpertEntry) -> Classifier:
    """A copy of the classifier of a checkpoint without the batch norms that can be folded; its experts share it.

    Where nothing can be folded, which is said once, it is the classifier itself.

    Args:
        checkpoint: a checkpoint in evaluation mode, which stays as it is.
        entry: entry of an expert that runs it, which says the size of its input.
    """
    if "folded" not in checkpoint.derived:
        try:
            checkpoint.derived["folded"] = _folded(checkpoint, entry)
        except PertinenceError as error:
            logger.warning_once(f"The batch norms of expert {entry.name!r} are not folded: {error}.")
            checkpoint.derived["folded"] = checkpoint.model
    return checkpoint.derived["folded"]


@torch.inference_mode(False)  # in which tensors do not count their changes; a lazy expert is loaded inside it
@torch.no_grad()
def _folded(checkpoint: Checkpoint, entry: ExpertEntry) -> Classifier:
    """A folded copy; raises `PertinenceError` if nothing can be folded, or the copy answers otherwise."""
    if not any(isinstance(module, NORMS) for module in checkpoint.model.modules()):
        raise PertinenceError("it has none")
    places = {value.device for value in checkpoint.model.parameters()}
    if len(places) != 1 or torch.device("meta") in places:
        raise PertinenceError("its weights are spread over several devices, or offloaded")
    network = copy.deepcopy(checkpoint.model).cpu()  # where nothing computes in less than float32 unasked
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(IMAGES, 3, *entry.transform.size, generator=generator).to(network.dtype)
    options = checkpoint.call_options(entry.transform)
    with _recorded_pairs(network) as pairs:
        expected = FeatureTap.of(network).run(network, pixels, **options)
    if not pairs:
        raise PertinenceError("none of them comes right after a convolution or a linear layer")
    for layer, norm in pairs:
        _fold(network, layer, norm)
    try:
        found = FeatureTap.of(network).run(network, pixels, **options)
    except Exception as error:  # code of the network may ask for the batch norm that is gone
        raise PertinenceError(f"without them it fails ({explain(error.__cause__ or error)})") from error
    apart = max(_difference(one, other) for one, other in zip(found, expected, strict=True))
    if not apart <= MOST_DIFFERENCE:  # also if it is NaN
        raise PertinenceError(
            f"the outputs of the folded network in {network.dtype} differ by {apart:.2g} of their size, expected at "
            f"most {MOST_DIFFERENCE}"
        )
    nn.Module.to(network, places.pop())
    return network


@contextmanager
def _recorded_pairs(network: nn.Module) -> Iterator[Pairs]:
    """A list that holds, after the network ran, the layers and batch norms between which nothing happens to a tensor.

    That nothing else uses this tensor, only a comparison of outputs can tell.
    """
    calls: Counter[nn.Module] = Counter()
    returned: dict[int, tuple[nn.Module, torch.Tensor, int]] = {}  # the tensors are kept, so that ids stay theirs
    found: Pairs = []

    def after_layer(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        calls[layer] += 1
        returned[id(output)] = layer, output, output._version

    def before_norm(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[norm] += 1
        layer, output, version = returned.get(id(inputs[0]), (None, inputs[0], 0))
        if layer is not None and output._version == version and _fit(layer, norm, output):
            found.append((layer, norm))

    modules = list(network.modules())
    handles = [module.register_forward_hook(after_layer) for module in modules if _is_layer(module)]
    handles += [module.register_forward_pre_hook(before_norm) for module in modules if _is_norm(module)]
    pairs: Pairs = []
    try:
        yield pairs
    finally:
        for handle in handles:
            handle.remove()
    uses = Counter(layer for layer, _ in found)
    pairs += [pair for pair in found if calls[pair[0]] == calls[pair[1]] == uses[pair[0]] == 1]


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is linear in its own weight, which no other code computes anew before each call."""
    from timm.layers import Conv2dSame

    forwards = [kind.forward for kind in (*LAYERS, Conv2dSame)]
    is_plain = isinstance(module, LAYERS) and type(module).forward in forwards and "forward" not in vars(module)
    return is_plain and isinstance(module._parameters.get("weight"), nn.Parameter) and not module._forward_hooks


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm with statistics, and at most timm's dropout and activation after it."""
    from timm.layers import BatchNormAct2d

    forwards = [kind.forward for kind in (*NORMS, BatchNormAct2d)]
    is_plain = isinstance(module, NORMS) and type(module).forward in forwards and "forward" not in vars(module)
    is_fixed = is_plain and not module.training and module.running_mean is not None and module.running_var is not None
    return is_fixed and not module._forward_hooks and not module._forward_pre_hooks


def _fit(layer: nn.Module, norm: nn.Module, output: torch.Tensor) -> bool:
    """Whether each channel of a batch norm is one of the outputs of the layer, rather than a position."""
    if isinstance(layer, nn.Linear):
        return output.ndim == 2 and layer.out_features == norm.num_features
    return output.ndim == layer.weight.ndim and layer.out_channels == norm.num_features


def _fold(network: nn.Module, layer: Any, norm: Any) -> None:
    """Change a layer in place to do the work of the batch norm after it, and remove that."""
    # The weight of a linear layer is that of a convolution of no extent.
    layer.weight, layer.bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    left = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if module is norm:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, nn.Sequential(*left) if left else nn.Identity())


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    expected = expected.float()
    return ((found.float() - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
