"""The seam: what a backend is asked for, and the backends by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch

from ...utils.errors import PertinenceError
from ...utils.modules import keeping_dtype
from ...utils.registry import Registry
from ..entry import ExpertEntry
from ..loading import Checkpoint


class Backend(Protocol):
    """Runs the network of one expert; made from its checkpoint and its entry.

    A backend that holds tensors of torch is an `nn.Module`, so that they move with the model. Another one stays where
    it is. `run` may be called from several threads.

    Attributes:
        version: of what it computes: predictions that were kept of another version are not used.
        devices: kinds of device that it runs on, like ("cpu",); None: all of torch's.
        fixed_dtype: that it computes in whatever the model is cast to; None: it is cast like the model.
        compiles: whether it can be compiled.
    """

    version: ClassVar[int]
    devices: ClassVar[tuple[str, ...] | None]
    fixed_dtype: ClassVar[torch.dtype | None]
    compiles: ClassVar[bool]

    def __init__(self, checkpoint: Checkpoint, entry: ExpertEntry):
        """Make it; raises `PertinenceError` where it cannot run this network."""

    @classmethod
    def is_offered(cls, checkpoint: Checkpoint, by_time: bool, device: torch.device) -> bool:
        """Whether `--variants auto` tries it as a cheaper variant of an expert.

        Args:
            checkpoint: the expert's.
            by_time: whether cost is measured in time; else operations are counted, of which it takes as many.
            device: that the search runs on.
        """

    @property
    def device(self) -> torch.device:
        """Where it takes pixels, and gives logits."""

    @property
    def dtype(self) -> torch.dtype:
        """That it computes in."""

    @property
    def memory(self) -> int:
        """Bytes of the weights that it holds."""

    def compile(self, **options: Any) -> None:
        """Compile it, in place, with options of `torch.compile`; called only where `compiles`."""

    def run(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Classify a batch.

        Args:
            pixel_values: float32 (B, 3, height, width) on `device`, as the expert's own image processor gives them.

        Returns:
            logits (B, C) in the order of the checkpoint, and pooled features (B, F), the input of the classification
            layer averaged over positions; None: the logits stand in for them.
        """


ASKED = ("version", "devices", "fixed_dtype", "compiles", "is_offered", "run")
"""What a class must have."""
BACKENDS: Registry[type[Backend]] = Registry(
    "backend",
    {
        "torch": "pertinence.experts.backends.torch:TorchBackend",
        "torch-int8": "pertinence.experts.backends.torch:TorchInt8Backend",
    },
    asked=ASKED,
)


def register_backend(name: str, backend: type[Backend]) -> type[Backend]:
    """Make a backend known: from then on `{"repo_id": ..., "backend": name}` asks for it.

    Args:
        name: which saved models note.
        backend: a class as [`Backend`] describes it.

    Raises:
        PertinenceError: the name is one of ours, or the class lacks something.
    """
    return BACKENDS.register(name, backend)


def backend_of(entry: ExpertEntry) -> type[Backend]:
    """The backend that an entry names; raises `PertinenceError` where it is not registered."""
    return BACKENDS.require(entry.backend, f"expert {entry.name!r}")


def check_device(entry: ExpertEntry, device: torch.device) -> None:
    """Raise `PertinenceError` where the backend of an expert does not run on a device."""
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
    """What `nn.Module.to` and the like do to the tensors of an expert.

    Args:
        entry: of the expert.
        device: where it is.
        fn: what they do to other tensors.

    Raises:
        PertinenceError: its backend does not run on the device that it is moved to.
    """
    check_device(entry, fn(torch.empty(0, device=device)).device)
    return fn if backend_of(entry).fixed_dtype is None else keeping_dtype(fn)
