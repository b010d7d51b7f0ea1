"""The experts of a saved model: all loaded at once, or each when it is first used, within a memory limit."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from accelerate.utils import convert_file_size_to_int
from torch import nn

from ..data.batches import Images
from ..experts.backends.base import moving
from ..experts.checkpoint_files import hash_folder
from ..experts.expert import Expert
from ..experts.exported import export_to_run
from ..experts.loading import Checkpoint
from ..routing.costs import STEM
from ..runtime.entry import ExpertEntry
from ..utils.errors import PertinenceError
from ..utils.graphs import outside_graphs
from .saved_pool import SavedPool


Experts: TypeAlias = "dict[int, Expert] | dict[int, LazyExpert]"
"""Experts by pool index; `STEM`: the separate stem."""


@dataclass
class _Weights:
    """One checkpoint in memory, the experts that are made from it, and which of them may run."""

    size: int
    opened: dict[Any, Checkpoint] = field(default_factory=dict)
    experts: dict[int, Expert] = field(default_factory=dict)
    placed: set[int] = field(default_factory=set)
    users: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)


class ExpertStore:
    """Loads experts when they are used, and evicts the least recently used ones at the memory limit.

    It never holds more than `max_memory` bytes of parameters: a thread that needs room for another expert waits until
    the experts in use have finished. Experts that share a checkpoint share its weights, which count once, in the dtype
    that they have been cast to. The first expert of the model's operating point and a separate stem are never evicted.

    Args:
        pool: the experts that may be loaded.
        max_memory: limit in bytes; None: experts are never evicted.

    Attributes:
        loads: how many times a checkpoint was loaded.

    Raises:
        PertinenceError: the experts that are never evicted and another one together exceed the limit.
    """

    def __init__(self, pool: SavedPool, max_memory: int | None = None):
        self.pool, self.max_memory = pool, max_memory
        self.loads = 0
        self._front = pool.config.build_front()
        self._weights: OrderedDict[Any, _Weights] = OrderedDict()  # least recently used first
        self._changed = threading.Condition()  # its lock is reentrant
        self._dtypes = {index: pool.dtype(index) for index in pool.entries}
        self._sizes = self._measure(self._dtypes)
        self._check_cap(self._sizes)

    def experts(self) -> dict[int, LazyExpert]:
        """A lazy module for every expert."""
        return {index: LazyExpert(self, index) for index in self.pool.entries}

    @property
    def memory(self) -> int:
        """Bytes of the parameters in memory."""
        with self._changed:
            return sum(weights.size for weights in self._weights.values())

    @property
    def loaded(self) -> list[int]:
        """Indices of the experts whose weights are in memory."""
        with self._changed:
            return [index for index in self.pool.entries if self.pool.memory_key(index) in self._weights]

    @contextmanager
    def borrow(self, index: int, place: Callable[[Expert], None]) -> Iterator[Expert]:
        """Provide an expert, which stays loaded within the context; if several threads need it, only one loads it.

        Args:
            index: pool index, or `STEM`.
            place: moves a newly loaded expert to its device.
        """
        key = self.pool.memory_key(index)
        with self._changed:
            weights = self._reserve(key, index)
        try:
            with weights.loading:
                if index not in weights.placed:
                    self._make(index, weights)
                    place(weights.experts[index])
                    weights.placed.add(index)
            yield weights.experts[index]
        finally:
            with self._changed:
                weights.users -= 1
                if not weights.opened and not weights.users and self._weights.get(key) is weights:
                    del self._weights[key]  # loading failed
                self._changed.notify_all()

    def forget(self) -> None:
        """Drop all experts; they are loaded again when they are next used."""
        with self._changed:
            self._weights.clear()
            self._changed.notify_all()

    def cast(self, index: int, dtype: torch.dtype) -> None:
        """Record that an expert was cast, which changes its size.

        Raises:
            PertinenceError: the experts exceed the limit if all of them are cast to this dtype, as in a cast model.
        """
        self._check_cap(self._measure(dict.fromkeys(self._dtypes, dtype)))
        with self._changed:
            self._dtypes[index] = dtype
            self._sizes = self._measure(self._dtypes)

    def _make(self, index: int, weights: _Weights) -> None:
        made = {index}
        if self._dtypes[index] != self.pool.dtype(index):
            # Casting this expert also casts the weights that copies for other experts are made from.
            key = self.pool.memory_key(index)
            made |= {i for i in self.pool.entries if self.pool.memory_key(i) == key and self.pool.fixed_dtype(i)}
        for one in made - set(weights.experts):
            weights.experts[one] = self.pool.load(one, weights.opened)

    def _measure(self, dtypes: Mapping[int, torch.dtype]) -> dict[int, int]:
        """Bytes of the checkpoint of each expert, in the widest dtype that any of its experts is cast to."""
        widest: dict[Any, int] = {}
        for index, dtype in dtypes.items():
            key = self.pool.memory_key(index)
            widest[key] = max(widest.get(key, 0), self.pool.size(index, dtype))
        return {index: widest[self.pool.memory_key(index)] for index in dtypes}

    def _check_cap(self, sizes: Mapping[int, int]) -> None:
        """Refuse a limit that some expert of these sizes exceeds, together with those that are never evicted."""
        needed = {
            index: sum({self.pool.memory_key(i): sizes[i] for i in self._staying() | {index}}.values())
            for index in sizes
        }
        most = max(needed, key=needed.__getitem__)
        if self.max_memory is not None and needed[most] > self.max_memory:
            raise PertinenceError(
                f"max_memory={self.max_memory:,} bytes do not hold expert {self.pool.entries[most].name!r} beside "
                f"what always stays: give at least {needed[most]:,}"
            )

    def _reserve(self, key: Any, index: int) -> _Weights:
        while key not in self._weights:
            if self._has_room(self._sizes[index]):
                self._weights[key] = _Weights(self._sizes[index])
                self.loads += 1
            else:
                self._changed.wait()
        self._weights.move_to_end(key)
        self._weights[key].users += 1
        return self._weights[key]

    def _has_room(self, size: int) -> bool:
        """Whether there is room for `size` more bytes, after evicting as many experts as necessary and possible."""
        if self.max_memory is None:
            return True
        staying = {self.pool.memory_key(index) for index in self._staying()}
        # The protected experts are evicted last: another operating point may have a first expert that the limit was
        # not checked for.
        leaving = sorted(self._weights, key=lambda key: key in staying)
        for key in leaving:
            if self.memory + size > self.max_memory and not self._weights[key].users:
                del self._weights[key]
        return self.memory + size <= self.max_memory

    def _staying(self) -> set[int]:
        first = self._front.find(self.pool.config.operating_point).members[0] if len(self._front) else 0
        return {first} | ({STEM} & set(self.pool.entries))

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertStore:
        store = memo[id(self)] = self._restored(copy.deepcopy(self.pool, memo), self.max_memory, self._dtypes)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which stores no weights; the options store no token."""
        return self._restored, (self.pool, self.max_memory, self._dtypes)

    @classmethod
    def _restored(cls, pool: SavedPool, max_memory: int | None, dtypes: dict[int, torch.dtype]) -> ExpertStore:
        store = cls(pool, max_memory)
        store._dtypes = dtypes.copy()
        store._sizes = store._measure(dtypes)
        return store


class LazyExpert(nn.Module):
    """Has the interface of an [`Expert`], which is loaded only while the store keeps it."""

    placement: torch.Tensor

    def __init__(self, store: ExpertStore, index: int):
        super().__init__()
        self.store, self.index = store, index
        self._compile_options: dict[str, Any] | None = None
        device = _one_device(store.pool.options.device_map)
        dtype = store.pool.fixed_dtype(index) or store.pool.dtype(index)
        self.register_buffer("placement", torch.empty(0, dtype=dtype, device=device), persistent=False)

    @property
    def entry(self) -> ExpertEntry:
        return self.store.pool.entries[self.index]

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        return self.placement.dtype

    @property
    def num_labels(self) -> int:
        return cast(int, self.store.pool.config.num_labels)  # transformers counts two where there are no labels

    @property
    def preprocessing(self) -> str:
        return self.store.pool.config.preprocessing

    @property
    def weights_key(self) -> tuple[str | None, str]:
        return self.store.pool.key(self.index)

    @property
    def folds_batch_norms(self) -> bool:
        return self.store.pool.options.folds(self.entry)

    @property
    def provider(self) -> str | None:
        return self.store.pool.options.provider_of(self.entry)

    def find_folder(self) -> Path:
        """See `Expert.find_folder`; files of the Hub are downloaded, but no network is built."""
        return self.store.pool.folder(self.index)

    def find_code(self) -> dict[str, Path]:
        """See `Expert.find_code`; nothing runs."""
        return self.store.pool.code(self.index)

    def find_revision(self) -> str:
        """See `Expert.find_revision`; it reads the files as they are now."""
        export = export_to_run(self.entry, self.store.pool.options.file_name)
        if export is not None:
            return f"sha256:{export.sha256}"
        return self.entry.revision if self.entry.is_on_hub else hash_folder(self.find_folder())

    @outside_graphs
    def forward(
        self, images: Images, max_batch: int | None = None, check: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Expert.forward`."""
        with self.loaded() as expert:
            return expert(images, max_batch, check)

    run, check = Expert.run, Expert.check

    def loaded(self) -> AbstractContextManager[Expert]:
        """See `Expert.loaded`."""
        return self.store.borrow(self.index, self._place)

    def train(self, mode: bool = True) -> LazyExpert:
        return super().train(False)

    def compile_network(self, options: dict[str, Any]) -> None:
        """See `Expert.compile_network`; also applies whenever the expert is loaded again."""
        self._compile_options = options
        self.store.forget()

    def _place(self, expert: Expert) -> None:
        expert.to(self.device, self.dtype)
        if self._compile_options is not None:
            expert.compile_network(self._compile_options)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LazyExpert:
        """See `Expert._apply`; also applies whenever the expert is loaded again."""
        fn = moving(self.entry, self.device, fn)
        before, after = self.placement, fn(self.placement)
        if after.dtype != before.dtype:
            self.store.cast(self.index, after.dtype)
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


def parse_memory(max_memory: Any) -> int | None:
    """Convert a memory limit like 500_000_000, "500MB" or "2GiB" to bytes."""
    try:
        size = None if max_memory is None else convert_file_size_to_int(max_memory)
    except (ValueError, TypeError, AttributeError) as error:
        raise PertinenceError(f'max_memory is a number of bytes or a size like "2GiB", got {max_memory!r}') from error
    return size
