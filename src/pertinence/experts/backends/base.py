"""The `Backend` protocol, and the registry of backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from ...data.batches import Images
from ...runtime.entry import ExpertEntry
from ...runtime.exports import Export
from ...utils.errors import PertinenceError
from ...utils.modules import keeping_dtype
from ...utils.registry import Registry
from ..loading import Checkpoint


class Backend(Protocol):
    """Runs the network of one expert; it is made from the checkpoint and the entry of the expert.

    A backend that holds tensors of torch is an `nn.Module`, so that they move with the model; any other backend stays
    on its device. `run` may be called from several threads.

    Attributes:
        version: version of its computation; cached predictions of another version are not used.
        devices: kinds of device that it runs on, like ("cpu",); None: all of torch's.
        fixed_dtype: the dtype that it computes in, even if the model is cast; None: it is cast with the model.
        compiles: whether it can be compiled.

    Attributes that it need not have:
        calibration_images: how many images of a search it is made with, given as a third argument, a `Calibration`.
        made: pairs of an `Export` and its file: graphs that a saved model must keep, as they could not be made again.
        libraries: packages whose versions its answers depend on, besides those of torch.
    """

    version: ClassVar[int]
    devices: ClassVar[tuple[str, ...] | None]
    fixed_dtype: ClassVar[torch.dtype | None]
    compiles: ClassVar[bool]

    def __init__(self, checkpoint: Checkpoint, entry: ExpertEntry):
        """Make the backend; raises `PertinenceError` if it cannot run this network."""

    @classmethod
    def is_offered(cls, checkpoint: Checkpoint, cost_depends: bool, device: torch.device) -> bool:
        """Whether `--variants auto` tries it as a cheaper variant of an expert.

        Args:
            checkpoint: checkpoint of the expert.
            cost_depends: whether the cost of the search depends on what runs a network, as time and memory do;
                otherwise a backend saves nothing, as it performs the same operations.
            device: device of the search.
        """

    @property
    def device(self) -> torch.device:
        """The device of its inputs and outputs."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in."""

    @property
    def memory(self) -> int:
        """Size of its weights, in bytes."""

    def compile(self, **options: Any) -> None:
        """Compile it, in place, with options of `torch.compile`; called only if `compiles`."""

    def run(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Classify a batch.

        Args:
            pixel_values: float32 (B, 3, height, width) on `device`, as the expert's own image processor returns them.

        Returns:
            Logits (B, C) in the label order of the checkpoint, and pooled features (B, F), the input of the
            classification layer averaged over positions; None instead of features: the logits replace them.
        """


ASKED = ("version", "devices", "fixed_dtype", "compiles", "is_offered", "run")
"""The attributes that a backend class must have."""
BACKENDS: Registry[type[Backend]] = Registry(
    "backend",
    {
        "torch": "pertinence.experts.backends.torch:TorchBackend",
        "torch-int8": "pertinence.experts.backends.torch:TorchInt8Backend",
        "onnx": "pertinence.experts.backends.onnx:OnnxBackend",
        "onnx-int8": "pertinence.experts.backends.onnx:OnnxInt8Backend",
        "openvino": "pertinence.experts.backends.openvino:OpenVinoBackend",
    },
    asked=ASKED,
)


def register_backend(name: str, backend: type[Backend]) -> type[Backend]:
    """Register a backend, so that experts can use it: `{"repo_id": ..., "backend": name}`.

    Args:
        name: the name that saved models record.
        backend: a class that implements the protocol [`Backend`].

    Raises:
        PertinenceError: the name is that of a built-in backend, or the class lacks an attribute.
    """
    return BACKENDS.register(name, backend)


def backend_of(entry: ExpertEntry) -> type[Backend]:
    """The backend that an entry names; raises `PertinenceError` if it is not registered."""
    return BACKENDS.require(entry.backend, f"expert {entry.name!r}")


@dataclass(frozen=True)
class Calibration:
    """What a backend is calibrated with: uint8 images of a search, and the mode of their preprocessing."""

    images: Images
    preprocessing: str = "exact"


def made_by(backend: Backend) -> tuple[tuple[Export, Path], ...]:
    """The graphs that a saved model must keep of a backend, with their files; none for most."""
    return tuple(getattr(backend, "made", ()))


def libraries_of(backend: type[Backend]) -> dict[str, str]:
    """The packages, besides torch's, that the answers of a backend depend on, with their versions."""
    return {name: version(name) for name in getattr(backend, "libraries", ())}


def calibration_images(backend: type[Backend]) -> int:
    """How many images of a search a backend is made with; 0 for most."""
    return int(getattr(backend, "calibration_images", 0))


def check_device(entry: ExpertEntry, device: torch.device) -> None:
    """Raise `PertinenceError` if the backend of an expert does not run on a device."""
    devices = backend_of(entry).devices
    if devices is not None and device.type not in devices:
        raise PertinenceError(
            f"expert {entry.name!r} computes in {entry.quantization or entry.backend}, which runs on "
            f"{' and '.join(devices)} only, not on {device.type}: choose that device, or leave "
            f"{'quantization' if entry.quantization else 'backend'} out"
        )


def moving(
    entry: ExpertEntry, device: torch.device, fn: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that `nn.Module.to` and the like apply to the tensors of an expert.

    Args:
        entry: entry of the expert.
        device: its current device.
        fn: the function that they apply to other tensors.

    Raises:
        PertinenceError: its backend does not run on the target device.
    """
    check_device(entry, fn(torch.empty(0, device=device)).device)
    return fn if backend_of(entry).fixed_dtype is None else keeping_dtype(fn)
