"""What is asked of an expert, whether it is loaded, or loaded when it is first chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self

import torch

from ..data.batches import Images
from .entry import ExpertEntry


class ExpertLike(Protocol):
    """An expert as the model, predictions and reports use it. Reading an attribute loads nothing.

    Attributes:
        entry: what the config stores of it.
        num_labels: how many labels the pool has, C.
        preprocessing: "exact" or "fast".
        device, dtype: where it runs, and in what.
        weights_key: experts that share a checkpoint have the same.
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

    def __call__(self, images: Images, max_batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify uint8 images.

        Args:
            images: see `Images`.
            max_batch: images that the network receives at once; default: as many as its device likes.

        Returns:
            logits (B, C) in the pool's label order, and features (B, F): the input of the final classification layer,
            averaged over positions; both float32.

        Raises:
            PertinenceError: its scores are NaN or infinite.
        """

    def run(self, images: Images, max_batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, but not checked: that would wait for everything before."""

    def check(self, total: torch.Tensor | float) -> None:
        """Raise `PertinenceError` where the sum of the scores that `run` gave is not finite."""

    def find_folder(self) -> Path | None:
        """Where its own files lie, which are fetched for that; None for a model that was given loaded."""

    def find_revision(self) -> str:
        """Commit, or content hash, of what it runs; `entry` says which it was when its figures were measured."""

    def compile_network(self, options: dict[str, Any]) -> None:
        """Compile its network, in place, with options of `torch.compile`; one that cannot be compiled stays."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and cast it, as `torch.nn.Module.to` does."""
