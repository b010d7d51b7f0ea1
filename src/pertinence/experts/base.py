"""`ExpertLike`: the interface of experts, whether they are loaded at once or when they are first used."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

from ..data.batches import Images
from ..runtime.entry import ExpertEntry


if TYPE_CHECKING:
    from .expert import Expert


class ExpertLike(Protocol):
    """An expert as the model, predictions and reports use it. Reading an attribute loads nothing.

    Attributes:
        entry: its entry in the config.
        num_labels: number of labels of the pool, C.
        preprocessing: "exact" or "fast".
        device, dtype: its device and dtype.
        weights_key: equal for experts that share a checkpoint.
        folds_batch_norms: whether its batch norms are folded, if they can be.
        provider: execution provider of its graph; None: that of the CPU, or it runs none.
    """

    @property
    def entry(self) -> ExpertEntry: ...

    @property
    def num_labels(self) -> int: ...

    @property
    def preprocessing(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def weights_key(self) -> Any: ...

    @property
    def folds_batch_norms(self) -> bool: ...

    @property
    def provider(self) -> str | None: ...

    def __call__(self, images: Images, max_batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify uint8 images.

        Args:
            images: see `Images`.
            max_batch: largest number of images per call of the network; default: what suits its device.

        Returns:
            Logits (B, C) in the pool's label order, and features (B, F): the input of the final classification layer,
            averaged over positions; both float32.

        Raises:
            PertinenceError: its scores are NaN or infinite.
        """

    def run(self, images: Images, max_batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The same without the check of the scores, which would wait for all work queued on the device."""

    def check(self, total: torch.Tensor | float) -> None:
        """Raise `PertinenceError` unless the sum of the scores that `run` returned is finite."""

    def loaded(self) -> AbstractContextManager[Expert]:
        """The expert while it is loaded, as a context: a lazy one may be unloaded afterwards."""

    def find_folder(self) -> Path | None:
        """The folder of its files, which are downloaded if necessary; None for a model that was given loaded."""

    def find_code(self) -> Mapping[str, Path]:
        """The folders of its code in other repositories, which is downloaded if necessary; see `fetch_code`."""

    def find_revision(self) -> str:
        """Commit or content hash of the files it runs; `entry` records those that its figures were measured with."""

    def compile_network(self, options: dict[str, Any]) -> None:
        """Compile its network in place, with options of `torch.compile`, if its backend can be compiled."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and cast it, as `torch.nn.Module.to` does."""
