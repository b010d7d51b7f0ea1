"""One expert: an image classifier with its own preprocessing, loaded at a pinned revision and checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..data.batches import Images, chunks, sorted_by_shape
from ..routing.costs import GMACS
from ..runtime.entry import TORCH, ExpertEntry
from ..runtime.transform import UnfitImage
from ..utils.errors import PertinenceError, explain, shown
from ..utils.graphs import outside_graphs
from ..utils.validation import LONGEST_NAME, is_name
from .backends.base import (
    BACKENDS,
    Backend,
    Calibration,
    backend_of,
    calibration_images,
    check_device,
    made_by,
    moving,
)
from .cards import read_licence
from .input_size import assumed_size, fitting_transform, native_side
from .loading import Checkpoint, check_channels, check_single_label, open_checkpoint
from .operations import count_operations
from .origin import Origin
from .preprocessing import Preprocessor, resolve_transform
from .reference import ExpertReference, LoadOptions
from .remote_code import commits_of
from .variants import smaller_transform


logger = logging.get_logger(__name__)

PIXELS_AT_ONCE = 2**16
"""Pixels per call on each CPU thread: 64 images of 32 x 32. With more, the activations do not fit into its cache, and
every image takes up to twice as long."""
LEAST_AT_ONCE = 4
ACCELERATED_PIXELS_AT_ONCE = 2**25
"""The same for an accelerator, where only memory is the limit: 668 images of 224 x 224."""


class Expert(nn.Module):
    """A frozen classifier with its own preprocessing, whose logits are in the label order of the pool.

    Attributes:
        origin: what it is made of: a loaded checkpoint, or an exported graph.
        entry: its entry in the config.
        network: the backend that runs its network.
        preprocess: turns images into pixels for the network.
    """

    def __init__(self, origin: Origin, entry: ExpertEntry, network: Backend, preprocess: Preprocessor):
        super().__init__()
        self.origin, self.entry, self.network, self.preprocess = origin, entry, network, preprocess

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        entry: ExpertEntry,
        preprocessing: str = "exact",
        calibration: Calibration | None = None,
    ) -> Expert:
        """The expert that runs a checkpoint, which several experts may share, as its entry says.

        Args:
            checkpoint: the loaded checkpoint.
            entry: its entry.
            preprocessing: "exact" or "fast".
            calibration: images for a backend that is made with them.
        """
        checkpoint.model.eval().requires_grad_(False)
        preprocess = Preprocessor(entry.transform, checkpoint.processor, preprocessing)
        return cls(checkpoint, entry, _make_network(checkpoint, entry, calibration), preprocess)

    @property
    def checkpoint(self) -> Checkpoint:
        """The loaded checkpoint; raises `PertinenceError` for an exported graph, which has none."""
        if not isinstance(self.origin, Checkpoint):
            raise PertinenceError(
                f"expert {self.entry.name!r} runs an exported graph, and its checkpoint is not loaded: load the model "
                "without backend="
            )
        return self.origin

    @property
    def model(self) -> nn.Module:
        """The classifier that runs, if its backend has one in torch."""
        return getattr(self.network, "model")  # noqa: B009

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def preprocessing(self) -> str:
        """Mode of the preprocessing: "exact" or "fast"."""
        return self.preprocess.mode

    @property
    def weights_key(self) -> Any:
        """Equal for experts that share a checkpoint."""
        return id(self.origin) if isinstance(self.origin, Checkpoint) else self.entry.checkpoint_key

    @property
    def folds_batch_norms(self) -> bool:
        return isinstance(self.origin, Checkpoint) and self.origin.options.folds(self.entry)

    @property
    def provider(self) -> str | None:
        return self.origin.options.provider_of(self.entry)

    @property
    def labels(self) -> dict[int, str]:
        """Its names of the pool's labels, by index."""
        own, label_map = self.origin.labels, self.entry.label_map
        return dict(own) if label_map is None else {index: own[theirs] for index, theirs in enumerate(label_map)}

    @property
    def num_labels(self) -> int:
        """Number of labels of the pool."""
        return len(self.labels)

    def loaded(self) -> AbstractContextManager[Expert]:
        """This expert while it is loaded, as a context: a lazy one may be unloaded afterwards."""
        return nullcontext(self)

    def find_folder(self) -> Path | None:
        """The folder of its files (in the cache, if they are from the Hub); None for a model that was given loaded."""
        return self.origin.folder

    def find_revision(self) -> str:
        """Commit or content hash of the loaded files; `entry` records those that its figures were measured with."""
        return self.origin.revision

    def find_code(self) -> Mapping[str, Path]:
        """The folders of its code in other repositories, see `fetch_code`."""
        return self.origin.code

    def with_entry(self, entry: ExpertEntry) -> Expert:
        """The same expert with another entry; its network is shared.

        Args:
            entry: may differ only in what does not change the network: names, costs, labels, figures.
        """
        twin = copy.copy(self)
        twin.entry = entry
        return twin

    def train(self, mode: bool = True) -> Expert:
        """Do nothing: an expert is frozen, and always in evaluation mode."""
        return super().train(False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Expert:
        """Move and cast the expert, as far as its backend allows."""
        return super()._apply(moving(self.entry, self.device, fn), recurse)

    @outside_graphs
    @torch.no_grad()
    def forward(
        self, images: Images, max_batch: int | None = None, check: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify uint8 images.

        Args:
            images: see `Images`.
            max_batch: largest number of images per call of the network; default: what suits its device (`chunk_size`).
            check: whether to check the scores, which waits for all work queued on the device.

        Returns:
            Logits (B, C) in the pool's label order, and features (B, F): the input of the final classification layer,
            averaged over positions; both float32.

        Raises:
            PertinenceError: its scores are NaN or infinite.
        """
        device = self.network.device
        outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        images, order = sorted_by_shape(images)
        for chunk in chunks(images, max_batch or self.chunk_size(device)):
            if not isinstance(chunk, torch.Tensor):
                chunk = [image.to(device, non_blocking=True) for image in chunk]
            elif chunk.device != device:
                chunk = chunk.to(device, non_blocking=True)
            try:
                outputs.extend(self._outputs(chunk, max_batch))
            except UnfitImage:
                raise
            except PertinenceError as error:
                raise PertinenceError(f"expert {self.entry.name!r}: {error}") from error
        logits, features = outputs[0] if len(outputs) == 1 else map(torch.cat, zip(*outputs, strict=True))
        if order is not None:
            back = torch.tensor(order, device="cpu").argsort().to(device, non_blocking=True)
            logits, features = logits[back], features[back]
        logits, features = logits.float(), features.float()
        if self.entry.label_map is not None:
            logits = logits[:, self.entry.label_map]
        if check:
            self.check(logits.sum())
        return logits, features

    def run(self, images: Images, max_batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """`forward` without the check of the scores; a call, so that hooks run."""
        return self(images, max_batch, check=False)

    def _outputs(self, images: Images, max_batch: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits and features of images on the device of the network, sorted by size."""
        network, usual = self.network, self.preprocess.transform.size
        for pixels in self.preprocess.batches(images):
            size = (pixels.shape[-2], pixels.shape[-1])
            parts = [pixels] if size == usual else pixels.split(max_batch or self.chunk_size(network.device, size))
            for part in parts:
                logits, features = network.run(part)
                yield logits, logits if features is None else features

    def check(self, total: torch.Tensor | float) -> None:
        """Raise `PertinenceError` unless the sum of the scores from `run` is finite, as then all scores are."""
        if not math.isfinite(total):
            raise PertinenceError(
                f"expert {self.entry.name!r} answers with NaN or infinite scores: check its weights, and its "
                f"dtype ({self.dtype})"
            )

    def compile_network(self, options: dict[str, Any]) -> None:
        """Compile the network in place, with options of `torch.compile`, if its backend can be compiled."""
        if self.network.compiles:
            self.network.compile(**options)

    def chunk_size(self, device: torch.device, size: tuple[int, int] | None = None) -> int:
        """Largest number of images, of (height, width) at the network, per call of the network on a device."""
        height, width = size or self.preprocess.transform.size
        if device.type != "cpu":
            return max(1, ACCELERATED_PIXELS_AT_ONCE // (height * width))
        return max(LEAST_AT_ONCE, PIXELS_AT_ONCE // (height * width)) * torch.get_num_threads()


def _make_network(checkpoint: Checkpoint, entry: ExpertEntry, calibration: Calibration | None) -> Backend:
    check_device(entry, checkpoint.model.device)
    backend: Any = backend_of(entry)
    try:
        return backend(checkpoint, entry, calibration) if calibration_images(backend) else backend(checkpoint, entry)
    except Exception as error:  # a backend from outside may raise anything
        reason = (
            str(error)
            if isinstance(error, PertinenceError)
            else f"the backend {entry.backend!r} cannot run {type(checkpoint.model).__name__} ({explain(error)})"
        )
        raise PertinenceError(f"expert {entry.name!r}: {reason}") from error


def load_expert(
    reference: ExpertReference,
    options: LoadOptions,
    preprocessing: str = "exact",
    is_stem: bool = False,
    opened: dict[Any, Checkpoint] | None = None,
) -> Expert:
    """Load one expert, or a stem, and measure what the config stores about it.

    Args:
        reference: where the expert comes from.
        options: how it is loaded.
        preprocessing: "exact" or "fast".
        is_stem: whether it is a separate stem, whose labels are ignored.
        opened: checkpoints that are already loaded, see `open_checkpoint`.

    Raises:
        PertinenceError: it cannot be loaded, or is not a single-label classifier of RGB images.
    """
    name = reference.display_name
    if not is_name(name):
        raise PertinenceError(
            f"expert {shown(name)} needs a name of one line of at most {LONGEST_NAME} printable characters: give one "
            "with {'name': ...}"
        )
    with naming(name):
        backend = _backend_for(reference, options)
        BACKENDS.get(backend)
    checkpoint = open_checkpoint(reference, options, is_stem, opened)
    model = checkpoint.model
    if not is_stem:
        check_single_label(name, checkpoint)
    check_channels(name, model.config)
    with naming(name):
        transform = resolve_transform(checkpoint.processor, native_side(model.config))
        transform = fitting_transform(checkpoint, transform)
    entry = ExpertEntry(
        name,
        reference.repo_id,
        checkpoint.revision,
        costs={},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        features=0,
        transform=transform,
        code=commits_of(checkpoint.code),
        dtype=str(model.dtype).removeprefix("torch."),
        licence=read_licence(checkpoint, name),
    )
    how = reference.image_size, reference.image_size_by, backend
    return measured_expert(checkpoint, entry, preprocessing, *how, is_stem=is_stem)


def _backend_for(reference: ExpertReference, options: LoadOptions) -> str:
    """The backend that a reference names, or else the one of all experts."""
    name = reference.backend_name
    is_named = reference.backend is not None or reference.quantization is not None
    return name if is_named or options.backend is None else options.backend


def measured_expert(
    checkpoint: Checkpoint,
    entry: ExpertEntry,
    preprocessing: str,
    image_size: int | None = None,
    image_size_by: str = "crop",
    backend: str = TORCH,
    *,
    is_stem: bool = False,
    calibration: Calibration | None = None,
) -> Expert:
    """Make the expert that runs a checkpoint with a given input size and backend, and measure its costs and features.

    Args:
        checkpoint: the loaded checkpoint, which experts that differ only in the following share.
        entry: entry of the expert with its full input; its costs and features need not be measured yet.
        preprocessing: "exact" or "fast".
        image_size, image_size_by, backend: see `ExpertReference`.
        is_stem: whether it is a separate stem, whose labels are ignored.
        calibration: see `Expert.of`.

    Raises:
        PertinenceError: the architecture does not take such images, or it is no classifier.
    """
    name, model = entry.name, checkpoint.model
    with naming(name):
        transform = smaller_transform(checkpoint, entry.transform, image_size, image_size_by)
        operations = count_operations(model, transform.size, checkpoint.call_options(transform))
    entry = entry.replace(costs={GMACS: operations.gmacs}, transform=transform, backend=backend)
    expert = Expert.of(checkpoint, entry, preprocessing, calibration)
    notes = [operations.note, None if expert.preprocess.has_fixed_size else assumed_size(checkpoint, transform)]
    probe = torch.zeros(1, 3, *transform.size, dtype=torch.uint8, device="cpu")
    logits, features = expert(probe)
    if not is_stem and logits.shape != (1, model.config.num_labels):
        raise PertinenceError(
            f"expert {name!r} answers with scores of shape {tuple(logits.shape)} for one image, expected (1, "
            f"{model.config.num_labels}): it is not an image classifier"
        )
    made = tuple(export for export, _ in made_by(expert.network))
    note = "; ".join(filter(None, notes)) or None
    return expert.with_entry(entry.replace(features=features.shape[1], cost_note=note, exports=made))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Add the name of the expert to errors."""
    try:
        yield
    except PertinenceError as error:
        raise PertinenceError(f"expert {name!r}: {error}") from error
