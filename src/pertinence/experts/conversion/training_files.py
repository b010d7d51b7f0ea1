"""Files that training programs write, read for their weights without running anything.

timm's train script, Lightning, torchvision's reference scripts, accelerate and plain `torch.save` pickle a mapping
that contains the weights. `torch.load(weights_only=True)` reads it: only tensors, plain values and the few classes
named here, of which none runs code.
"""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...utils.errors import PertinenceError, explain, printable
from ..prefixes import WRAPPERS


Weights = dict[str, torch.Tensor]
"""Tensors by name."""

PLACES = ("state_dict", "model_state_dict", "model", "module", "net", "network", "model_state", "weights", "params")
"""Names under which training programs save weights."""
OF_AVERAGE = re.compile(r"(?:^|_)(?:ema|averaged?)(?:_|$)")
"""Names under which they save a moving average of the weights: `state_dict_ema`, `model_ema`, `averaged_model`, ..."""
DEEPEST = 4
"""How deep a mapping with weights may lie: Lightning's callbacks keep them in the third level."""


class _Ignored:
    """Stands for an object that is read over; nothing of its own class is imported or called."""

    def __new__(cls, *values: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *values: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


IGNORED = (
    *(f"{module}.{name}" for module in ("numpy.core.multiarray", "numpy._core.multiarray")
      for name in ("scalar", "_reconstruct")),
    *("numpy.ndarray", "numpy.dtype"),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
)  # fmt: skip
"""Metrics that are NumPy's numbers, and paths."""
HARMLESS: list[Any] = [
    argparse.Namespace,  # the settings that train scripts of timm and torchvision record
    *((dict, f"{module}.utilities.data.AttributeDict") for module in ("lightning.fabric", "lightning_fabric")),
    *((_Ignored, name) for name in IGNORED),
]


@dataclass(frozen=True)
class TrainingFile:
    """The weights that were taken from a file.

    Attributes:
        path: the file.
        weights: tensors on the CPU, by their names in the file, which wrappers may have prefixed.
        source: the file and the entry that these weights were taken from, for messages.
        settings: the settings that the training program recorded, by name.
        architecture: name of the architecture, if the program recorded it.
        record: what recorded these, for messages.
    """

    path: Path
    weights: Weights = field(repr=False)
    source: str
    settings: dict[str, Any]
    architecture: str | None
    record: str = "the file"


def read_training_file(path: Path, ema: bool | None = None) -> TrainingFile:
    """Read the weights in a file of a training program, or a bare state dict.

    Args:
        path: a file of `torch.save` or of safetensors.
        ema: whether to take the moving average of the weights (EMA); default: if the file has one.

    Raises:
        PertinenceError: the file does not exist, is damaged, would run code, or lacks such weights.
    """
    if not path.is_file():
        raise PertinenceError(f"{path} is a folder, expected a file" if path.is_dir() else f"there is no file {path}")
    content = _read(path)
    plain, average = _weights_in(content, path)
    if not (plain or average):
        shown = ", ".join(printable(str(key), 40) for key in list(content)[:6]) if isinstance(content, Mapping) else ""
        raise PertinenceError(
            f"{path} holds no weights by name ({shown or type(content).__name__}): expected a state dict, alone or as "
            "an entry `state_dict`"
        )
    takes_average = bool(average) if ema is None else ema
    chosen = average if takes_average else plain
    if not chosen:
        missing, advice = ("moving average (EMA)", "--ema") if ema else ("weights beside their average", "--no-ema")
        raise PertinenceError(f"{path} has no {missing}: leave {advice} out")
    place, weights = next(iter(chosen.items()))
    _check_dense(weights, path)
    source = f"{path.name} ({place})" if place else path.name
    if average:
        source += ", the moving average (EMA)" if takes_average else ", not the moving average (EMA) beside it"
    return TrainingFile(path, weights, source, *_recorded(content))


def _read(path: Path) -> Any:
    """The content of a file."""
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of archives that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything
        raise PertinenceError(f"{path} {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"unrecognized function (.+)", text)
    if named is not None:
        name = printable(named[1], 80)
        is_network = re.match(r"(torch\.nn|torchvision|timm|transformers|__main__)\b", name)
        what = f"a whole pickled network or object ({name})" if is_network else name
        return f"holds {what}, which only running code could restore: save the weights alone, `model.state_dict()`"
    if "TorchScript" in text:
        return "is a TorchScript archive: save the weights alone, `model.state_dict()`"
    if isinstance(error, SafetensorError):
        return f"is damaged ({explain(error)}): copy it again"
    return "is damaged, or was not written by `torch.save` or safetensors"


def _check_dense(weights: Weights, path: Path) -> None:
    for name, tensor in weights.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            kind = f"{tensor.dtype} on {tensor.device}, {tensor.layout}"
            raise PertinenceError(f"{path} holds {printable(name, 80)} in a form that cannot be converted ({kind})")


def _weights_in(content: Any, path: Path) -> tuple[dict[str, Weights], dict[str, Weights]]:
    """The weights in a file, and moving averages of them, by their place; the likeliest first."""
    plain: dict[str, Weights] = {}
    average: dict[str, Weights] = {}
    for place, value in _mappings(content):
        parts = place.split(".")
        names_average = any(map(OF_AVERAGE.search, parts))
        own, averaged = _split_by_name(value)
        if own and (names_average or len(parts) == 1 or set(parts) <= set(PLACES)):
            (average if names_average else plain)[place] = own
        if averaged:
            average[f"{place}.ema".lstrip(".")] = averaged
    if isinstance(content, Mapping) and {"averaging_state", "current_model_state"} <= content.keys():
        # Lightning's WeightAveraging: `state_dict` is the average.
        average = {place: plain[place] for place in ("state_dict",) if place in plain}
        plain = {place: plain[place] for place in ("current_model_state",) if place in plain}
    known = [place for place in ("", *PLACES) if place in plain] or [place for place in plain if "." in place]
    if not known and len(plain) > 1:
        raise PertinenceError(f"{path} holds several networks ({', '.join(plain)}): save the weights of one alone")
    return {place: plain[place] for place in known or plain}, average


def _mappings(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    """Every mapping of names to tensors in a file, and its place; optimizers number their tensors."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    inner = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not inner and any(tensor.ndim for tensor in tensors.values()):
        yield place, tensors
    elif depth < DEEPEST:
        for key, value in inner.items():
            yield from _mappings(value, f"{place}.{printable(key, 60)}".lstrip("."), depth + 1)


def _split_by_name(weights: Mapping[str, torch.Tensor]) -> tuple[Weights, Weights]:
    """The weights of a module, and those of the moving average that it contains (`ema_model.conv1.weight`)."""
    first = {name: re.match(rf"(?:(?:{'|'.join(WRAPPERS)})\.)*(\w+)\.", name) for name in weights}
    averaged = {name for name, match in first.items() if match and OF_AVERAGE.search(match[1])}
    own = {name: tensor for name, tensor in weights.items() if name not in averaged}
    if not any(tensor.ndim for tensor in own.values()):
        own = {}
    return own, {name[first[name].end() :]: weights[name] for name in weights if name in averaged}  # type: ignore[union-attr]


def _recorded(content: Any) -> tuple[dict[str, Any], str | None]:
    """The settings and the architecture that a training program recorded."""
    if not isinstance(content, Mapping):
        return {}, None
    recorded = content.get("args")
    settings = vars(recorded) if isinstance(recorded, argparse.Namespace) else recorded
    settings = {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}
    names = (settings.get("model"), content.get("arch"))
    return settings, next((name for name in names if isinstance(name, str) and name), None)
