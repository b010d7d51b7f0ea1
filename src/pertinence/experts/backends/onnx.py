"""The backend that runs an exported graph in ONNX Runtime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch

from ...runtime.entry import TORCH, ExpertEntry
from ...runtime.exports import Export
from ...runtime.sessions import Session, SessionSettings, Widths
from ...utils.errors import PertinenceError
from ..expert import Expert
from ..export_cache import cached_export
from ..loading import Checkpoint
from ..quantizing import quantized
from ..reference import LoadOptions
from .base import Calibration


CPU = torch.device("cpu")


class Graph(Protocol):
    """An opened graph: it maps float32 (b, 3, height, width) to logits (b, C) and features (b, F) or None."""

    export: Export

    def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]: ...


class OnnxBackend:
    """An exported graph. It takes its pixels on the host, wherever its provider computes.

    Attributes:
        path: the file.
        export: what is recorded about it.
        graph: the opened graph.
    """

    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    version: ClassVar[int] = 1
    devices: ClassVar[tuple[str, ...] | None] = ("cpu",)
    fixed_dtype: ClassVar[torch.dtype | None] = torch.float32
    compiles: ClassVar[bool] = False

    def __init__(self, checkpoint: Checkpoint, entry: ExpertEntry):
        """Export the network of a checkpoint into the cache, unless it is there, and open it."""
        path, export = cached_export(checkpoint, entry)
        self._open(path, export, checkpoint.options)

    @classmethod
    def from_file(cls, path: Path, export: Export, options: LoadOptions, widths: Widths | None = None) -> Self:
        """Open an exported file of a saved model; raises `PertinenceError` if it is not what is recorded of it."""
        backend = cls.__new__(cls)
        backend._open(path, export, options, widths)
        return backend

    @classmethod
    def is_offered(cls, checkpoint: Checkpoint, cost_depends: bool, device: torch.device) -> bool:
        return False  # it gives the same answers: a model is loaded with it, rather than searched

    def _open(self, path: Path, export: Export, options: LoadOptions, widths: Widths | None = None) -> None:
        self.path, self.export, self._options = path, export, options
        self.graph = self.opened(export.read(path), export, options, widths)
        self.memory = path.stat().st_size

    def opened(self, content: bytes, export: Export, options: LoadOptions, widths: Widths | None) -> Graph:
        """The graph of a file's content, whose outputs have these widths."""
        provider = {} if options.provider is None else {"provider": options.provider}
        threads = torch.get_num_threads() if options.session_options is None else None
        settings = SessionSettings(**provider, session_options=options.session_options, threads=threads)
        return Session(content, export, settings, widths)

    @property
    def device(self) -> torch.device:
        return CPU

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def run(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, features = self.graph.run(pixel_values.float().cpu().contiguous().numpy())
        return torch.from_numpy(logits), None if features is None else torch.from_numpy(features)

    def compile(self, **options: Any) -> None:
        raise PertinenceError("an exported graph is not compiled: load the model without backend= to compile it")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_file, (self.path, self.export, self._options)


class OnnxInt8Backend(OnnxBackend):
    """The graph in 8 bits: another expert than the one in 32 bits, to whose predictions other heads are fitted."""

    calibration_images: ClassVar[int] = 384

    def __init__(self, checkpoint: Checkpoint, entry: ExpertEntry, calibration: Calibration | None = None):
        """Quantize the network of a checkpoint in the cache, unless it is there, and open it.

        Args:
            checkpoint, entry: of the expert.
            calibration: images of the search that no report shows, which calibrate the scales of activations.
        """
        if calibration is None:
            raise PertinenceError(
                "8-bit graphs are calibrated on images of a search: ask for them with `search --variants auto`"
            )
        expert = Expert.of(checkpoint, entry.replace(backend=TORCH), calibration.preprocessing)
        path, export = quantized(expert, calibration.images)
        self._open(path, export, checkpoint.options)

    @property
    def made(self) -> tuple[tuple[Export, Path], ...]:
        return ((self.export, self.path),)

    @classmethod
    def is_offered(cls, checkpoint: Checkpoint, cost_depends: bool, device: torch.device) -> bool:
        has_packages = all(find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript"))
        return cost_depends and device.type == "cpu" and has_packages
