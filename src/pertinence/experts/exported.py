"""Experts that run exported graphs of a saved model: neither their checkpoints nor their code are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from transformers.utils import logging

from ..data.labels import Labels
from ..runtime.entry import GRAPH_BACKENDS, ONNX_INT8, TORCH, ExpertEntry
from ..runtime.exports import FLOAT32, INT8, Export
from ..runtime.sessions import Widths
from ..utils.errors import PertinenceError
from .backends.base import backend_of
from .backends.onnx import OnnxBackend
from .expert import Expert, naming
from .loading import load_processor
from .preprocessing import Preprocessor
from .reference import LoadOptions


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ExportedOrigin:
    """The graph that an expert runs, and the checkpoint that it was exported from, which is fetched only to be copied.

    Attributes:
        labels: the names of its outputs, by index; empty for a stem.
        revision: content hash of the graph.
        find_folder: finds the folder of the checkpoint, and downloads it if necessary.
        find_code: the same for its code in other repositories.
        options: how its graph is opened.
    """

    labels: Labels
    revision: str
    find_folder: Callable[[], Path]
    find_code: Callable[[], Mapping[str, Path]]
    options: LoadOptions

    @property
    def folder(self) -> Path:
        return self.find_folder()

    @cached_property
    def code(self) -> Mapping[str, Path]:
        return self.find_code()


def export_to_run(entry: ExpertEntry, file_name: str | None = None) -> Export | None:
    """The exported graph that an expert runs; None if its backend makes one of the checkpoint, or needs none.

    Raises:
        PertinenceError: a file is asked for that its entry does not list, or the 8-bit graph that it runs is missing,
            or the graph is of another revision.
    """
    if entry.backend == ONNX_INT8:
        return entry.find_export(INT8)
    if entry.backend not in GRAPH_BACKENDS or not entry.exports:
        return None
    return entry.find_export(FLOAT32, file_name)


def chosen_backends(entries: Mapping[int, ExpertEntry], options: LoadOptions) -> dict[int, ExpertEntry]:
    """The entries of a saved model with the backend that it is loaded with; experts without an exported graph stay in
    torch, which is said.

    Raises:
        PertinenceError: there is no such backend, or no expert has an exported graph.
    """
    wanted = options.backend
    if wanted is None:
        return dict(entries)
    if wanted not in (TORCH, *GRAPH_BACKENDS):
        raise PertinenceError(f"backend={wanted!r} is not one of {', '.join((TORCH, *GRAPH_BACKENDS))}")
    # Heads that were fitted to 8-bit graphs are not run with others, and the same holds for other backends.
    movable = {index for index, entry in entries.items() if entry.backend in (TORCH, *GRAPH_BACKENDS)}
    if wanted in GRAPH_BACKENDS:
        movable = {
            index
            for index in movable
            if entries[index].backend != TORCH or any(one.precision == FLOAT32 for one in entries[index].exports)
        }
        left = [entry.name for index, entry in entries.items() if index not in movable and entry.backend == TORCH]
        if not movable and left:
            raise PertinenceError(
                f"backend={wanted!r} needs exported experts, and this model has none: `pertinence export` writes them"
            )
        if left:
            logger.warning(f"Not exported, so they run in torch: {', '.join(left)}. `pertinence export` writes them.")
    return {index: entry.replace(backend=wanted) if index in movable else entry for index, entry in entries.items()}


def open_exported(
    entry: ExpertEntry, export: Export, path: Path, origin: ExportedOrigin, preprocessing: str
) -> Expert:
    """Make the expert that runs an exported graph.

    Args:
        entry: its entry, which names the backend.
        export: what the entry records about the graph.
        path: the file.
        origin: where it comes from.
        preprocessing: "exact" or "fast".

    Raises:
        PertinenceError: the file is not what is recorded of it, or the backend cannot open it.
    """
    with naming(entry.name):
        widths = Widths(len(origin.labels), entry.features, entry.label_map)
        backend = cast(type[OnnxBackend], backend_of(entry)).from_file(path, export, origin.options, widths)
        is_own = entry.transform.library == "own"
        processor = load_processor(origin.folder, origin.options) if is_own else None
        return Expert(origin, entry, backend, Preprocessor(entry.transform, processor, preprocessing))
