"""Which weights of a file belong to a network: prefixes of wrappers, names, shapes, and what to say if they differ."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch

from ...utils.errors import PertinenceError, printable
from ..prefixes import INNER, WRAPPERS
from .training_files import Weights


PREFIXES = tuple(f"{part}." for part in (*WRAPPERS, "model", "net", "network", "backbone", "timm_model"))
"""What wrappers of torch, Lightning modules and transformers put before the names of a network's weights."""
MOST_PREFIXES = 4
UNUSED = ("num_batches_tracked", "n_averaged", "total_ops", "total_params", "relative_position_index", "attn_mask")
"""Last parts of names of counters and constants that a network computes itself."""

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, but for counters and constants."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items() if name.rpartition(".")[2] not in UNUSED}


def without_prefix(weights: Weights, wanted: Collection[str]) -> tuple[Weights, list[str]]:
    """The weights of one network among those of a file, without the prefixes that wrappers gave to their names.

    Args:
        weights: the tensors of the file, by name.
        wanted: the names in the network.

    Returns:
        The weights under the prefix with the most wanted names, and the names of the tensors beside it.
    """
    found = max(_stripped(weights, ""), key=lambda one: (len(one[1].keys() & set(wanted)), -len(one[0])))
    prefix, inner = found
    beside = [name for name in weights if not name.startswith(prefix)]
    return inner, [name for name in beside if name.rpartition(".")[2] not in UNUSED]


def _stripped(weights: Weights, prefix: str, depth: int = 0) -> Iterator[tuple[str, Weights]]:
    unwrapped = {re.sub(INNER, "", name): tensor for name, tensor in weights.items()}
    if len(unwrapped) == len(weights):  # else the network has layers of these names
        yield prefix, unwrapped
    yield prefix, weights
    for part in PREFIXES if depth < MOST_PREFIXES else ():
        inner = {name[len(part) :]: tensor for name, tensor in weights.items() if name.startswith(part)}
        if inner:
            yield from _stripped(inner, prefix + part, depth + 1)


def matched_by_size(weights: Weights, network: torch.nn.Module) -> Weights | None:
    """Weights with the names of another library, given the names of a network with the same layers.

    Both libraries register the layers in the order of the data, so among the tensors of one size the n-th belongs to
    the n-th. This is a guess: compare what the networks answer.

    Returns:
        The weights by the names of the network, or None if the sizes differ.
    """
    own = network.state_dict()
    if not have_same_sizes(weights, own):
        return None
    of_size: dict[int, list[torch.Tensor]] = defaultdict(list)
    for name in shapes_of(weights):
        of_size[weights[name].numel()].append(weights[name])
    return {name: of_size[own[name].numel()].pop(0).reshape(shape) for name, shape in shapes_of(own).items()}


def have_same_sizes(weights: Weights, others: Weights) -> bool:
    """Whether two networks have equally many tensors of each number of elements."""
    first, second = (sorted(map(math.prod, shapes_of(part).values())) for part in (weights, others))
    return first == second


def explain_mismatch(path: Path, name: str, own: Shapes, wanted: Shapes) -> str:
    """Say which tensors of a file do not fit a network: "12 of 60 tensors fit; it lacks ...; it has ... beside"."""
    missing = [key for key in wanted if key not in own]
    beside = [key for key in own if key not in wanted]
    other = [key for key in wanted if key in own and own[key] != wanted[key]]
    fit = len(wanted) - len(missing) - len(other)
    parts = [
        f"{word} {', '.join(printable(key, 80) for key in keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for word, keys in (("it lacks", missing), ("it has beside them", beside))
        if keys
    ]
    if other:
        key = other[0]
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        parts.append(f"{key}{more} of another shape, {_spelt(own[key])} where the network has {_spelt(wanted[key])}")
    return f"{path} does not hold the weights of {name}: {fit} of {len(wanted)} tensors fit; {'; '.join(parts)}"


def _spelt(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def check_counts(path: Path, own: Shapes, wanted: Shapes, classifiers: Collection[str], labels: int) -> None:
    """Raise `PertinenceError` if a file fits a network but for the number of outputs, or the size of its images."""
    if own.keys() != wanted.keys():
        return
    other = {key for key in wanted if own[key] != wanted[key]}
    if other and all(
        key.rpartition(".")[0] in classifiers
        and len(own[key]) == len(wanted[key]) > 0
        and own[key][1:] == wanted[key][1:]
        for key in other
    ):
        outputs = own[min(other)][0]
        raise PertinenceError(
            f"the network in {path} has {outputs} outputs, but there are {labels} label names: give one for each "
            "output, in their order"
        )
    if other and all("pos_embed" in key or "relative_position" in key for key in other):
        key = min(other)
        raise PertinenceError(
            f"{path} was trained on images of another size ({key} is {_spelt(own[key])} instead of "
            f"{_spelt(wanted[key])}): give that size with --image-size"
        )
