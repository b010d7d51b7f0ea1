"""The experts of a saved model: all loaded at once, or each when it is first chosen, under a cap on memory."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from torch import nn

from .checkpoints import Checkpoint, LoadOptions
from .configuration_pertinence import PertinenceConfig
from .errors import PertinenceError
from .experts import Expert, reload_expert
from .front import STEM
from .preprocessing import Images
from .references import locate


Experts = dict[int, "Expert | LazyExpert"]
"""By pool index; `STEM`: the separate stem."""


def load_experts(config: PertinenceConfig, places: Mapping[int, str], options: LoadOptions) -> Experts:
    """Load every expert of a saved model.

    Args:
        config: of the model.
        places: where each lies, from `find_experts`.
        options: how they are loaded.
    """
    opened: dict[Any, Checkpoint] = {}
    return {index: _load(config, index, place, options, opened) for index, place in places.items()}


def find_experts(
    config: PertinenceConfig, source: str, revision: str | None, options: LoadOptions, paths: Mapping[str, Any]
) -> dict[int, str]:
    """Hub id or folder of every expert of a saved model.

    Args:
        config: of the model; notes where experts have moved to.
        source, revision: where the model itself was loaded from.
        options: how they are loaded.
        paths: where local experts have moved to, folder by expert name.

    Raises:
        PertinenceError: a name is unknown, or an expert is not where it was.
    """
    entries = _entries(config)
    known = [entry["name"] for entry in entries.values()]
    if unknown := set(paths) - set(known):
        raise PertinenceError(f"expert_paths names {sorted(unknown)}, but the experts are {', '.join(known)}")
    places = {}
    for index, entry in entries.items():
        if entry["name"] in paths:
            entry["repo_id"] = str(Path(paths[entry["name"]]).resolve())
        places[index] = locate(entry, source, revision, options)
    return places


def _entries(config: PertinenceConfig) -> dict[int, dict[str, Any]]:
    return {**dict(enumerate(config.experts)), **({STEM: config.stem} if config.stem else {})}


def _load(
    config: PertinenceConfig, index: int, place: str, options: LoadOptions, opened: dict[Any, Checkpoint]
) -> Expert:
    entry = _entries(config)[index]
    expert = reload_expert(entry, place, options, config.preprocessing, index == STEM, opened)
    if index != STEM and len(expert.labels) != config.num_labels:
        raise PertinenceError(
            f"expert {entry['name']!r} has {len(expert.labels)} labels, config.json {config.num_labels}"
        )
    return expert


@dataclass
class _Weights:
    """One checkpoint in memory, and the experts that are made from it."""

    size: int
    opened: dict[Any, Checkpoint] = field(default_factory=dict)
    experts: dict[int, Expert] = field(default_factory=dict)
    users: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)


class ExpertStore:
    """Experts that are loaded when they are asked for; the least recently used leave when the cap is reached.

    Never more than `max_memory` bytes of parameters are held: a thread that needs room for another expert waits until
    those in use are done. Experts that share a checkpoint share its weights, which count once. The expert that runs
    first at the model's operating point, and a separate stem, stay.

    Args:
        config: of the model.
        places: where each expert lies, see `find_experts`.
        options: how they are loaded.
        max_memory: bytes; None: all that were ever chosen stay.

    Attributes:
        loads: how many times a checkpoint was loaded.

    Raises:
        PertinenceError: what stays and another expert do not fit together.
    """

    def __init__(
        self, config: PertinenceConfig, places: Mapping[int, str], options: LoadOptions, max_memory: int | None = None
    ):
        self.config, self.places, self.options, self.max_memory = config, dict(places), options, max_memory
        self.loads = 0
        self._first = {point.name: point.members[0] for point in config.build_front()}
        self._weights: OrderedDict[Any, _Weights] = OrderedDict()  # the least recently used first
        self._changed = threading.Condition()
        for index in places if max_memory is not None else ():
            needed = sum({self.key(i): self._size_of(i) for i in self._staying() | {index}}.values())
            if needed > max_memory:
                raise PertinenceError(
                    f"max_memory={max_memory:,} bytes do not hold expert {_entries(config)[index]['name']!r} beside "
                    f"what always stays: give at least {needed:,}"
                )

    def key(self, index: int) -> tuple[str, str]:
        """What tells the checkpoint of an expert."""
        return self.places[index], _entries(self.config)[index]["revision"]

    def experts(self) -> Experts:
        """A module for every expert; none is loaded yet."""
        return {index: LazyExpert(self, index) for index in self.places}

    @property
    def memory(self) -> int:
        """Bytes of the parameters that are held now."""
        return sum(weights.size for weights in self._weights.values())

    @property
    def loaded(self) -> list[int]:
        """The experts whose weights are held now."""
        return [index for index in self.places if self.key(index) in self._weights]

    @contextmanager
    def borrow(self, index: int, place: Callable[[Expert], None]) -> Iterator[Expert]:
        """An expert, which stays until it is given back; of several threads that ask for it one loads it.

        Args:
            index: of the pool, or `STEM`.
            place: brings an expert that has just been loaded to its device.
        """
        key = self.key(index)
        with self._changed:
            weights = self._reserve(key, index)
        try:
            with weights.loading:
                if index not in weights.experts:
                    self.loads += not weights.opened
                    expert = _load(self.config, index, self.places[index], self.options, weights.opened)
                    place(expert)
                    weights.experts[index] = expert
            yield weights.experts[index]
        finally:
            with self._changed:
                weights.users -= 1
                if not weights.opened and not weights.users and self._weights.get(key) is weights:
                    del self._weights[key]  # it could not be loaded
                self._changed.notify_all()

    def forget(self) -> None:
        """Let go of everything: what is asked for next is loaded anew."""
        with self._changed:
            self._weights.clear()
            self._changed.notify_all()

    def _reserve(self, key: Any, index: int) -> _Weights:
        size = self._size_of(index)
        while key not in self._weights:
            if self._has_room(size):
                self._weights[key] = _Weights(size)
            else:
                self._changed.wait()
        self._weights.move_to_end(key)
        self._weights[key].users += 1
        return self._weights[key]

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more may be held, after those have left that can."""
        if self.max_memory is None:
            return True
        staying = {self.key(index) for index in self._staying()}
        # What stays leaves last: another operating point may have another first expert than the cap was checked for.
        leaving = sorted(self._weights, key=lambda key: key in staying)
        for key in leaving:
            if self.memory + size > self.max_memory and not self._weights[key].users:
                del self._weights[key]
        return self.memory + size <= self.max_memory

    def _staying(self) -> set[int]:
        first = self._first.get(self.config.operating_point, next(iter(self._first.values()), 0))
        return {first} | ({STEM} & set(self.places))

    def _size_of(self, index: int) -> int:
        entry = _entries(self.config)[index]
        dtype = self.options.dtype or entry.get("dtype") or torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return entry["parameters"] * dtype.itemsize

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertStore:
        memo[id(self)] = ExpertStore(copy.deepcopy(self.config, memo), self.places, self.options, self.max_memory)
        return memo[id(self)]


class LazyExpert(nn.Module):
    """Stands where an [`Expert`] stands and answers as it does, but has it loaded only while the store keeps it."""

    def __init__(self, store: ExpertStore, index: int):
        super().__init__()
        self.store, self.index = store, index
        entry = self.entry
        dtype = store.options.dtype or entry.get("dtype") or torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        device = _one_device(store.options.device_map)
        self.register_buffer("placement", torch.empty(0, dtype=dtype, device=device), persistent=False)

    @property
    def entry(self) -> dict[str, Any]:
        return _entries(self.store.config)[self.index]

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        return self.placement.dtype

    @property
    def weights_key(self) -> tuple[str, str]:
        return self.store.key(self.index)

    def __getattr__(self, name: str) -> Any:
        # What only the loaded expert knows; it is loaded for that.
        if name in ("model", "preprocess", "folder", "revision", "labels"):
            with self._borrow() as expert:
                return getattr(expert, name)
        return super().__getattr__(name)

    def forward(self, images: Images, max_batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Expert.forward`."""
        with self._borrow() as expert:
            return expert(images, max_batch)

    def answer(self, images: Images, max_batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `Expert.answer`."""
        with self._borrow() as expert:
            return expert.answer(images, max_batch)

    check = Expert.check

    def train(self, mode: bool = True) -> LazyExpert:
        return super().train(False)

    def _borrow(self):
        return self.store.borrow(self.index, lambda expert: expert.to(self.device, self.dtype))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LazyExpert:
        before = self.placement
        super()._apply(fn, recurse)
        if (before.device, before.dtype) != (self.device, self.dtype):
            self.store.forget()
        return self


def _one_device(device_map: Any) -> torch.device | None:
    """The device that a `device_map` names."""
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        return None if device_map is None else torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise PertinenceError(
            f"lazy experts all go to one device, got device_map={device_map!r}: name one, like 'cuda:0'"
        ) from error


def parse_memory(max_memory: int | str | None) -> int | None:
    """Bytes of a cap like 500_000_000, "500MB" or "2GiB"."""
    try:
        size = None if max_memory is None else convert_file_size_to_int(max_memory)
    except (ValueError, TypeError, AttributeError) as error:
        raise PertinenceError(f'max_memory is a number of bytes or a size like "2GiB", got {max_memory!r}') from error
    if size is not None and size <= 0:
        raise PertinenceError(f"max_memory must be positive, got {max_memory!r}")
    return size
