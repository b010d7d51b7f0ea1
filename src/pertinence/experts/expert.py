"""One expert: an image classifier with its own preprocessing, loaded at a pinned revision and checked."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..data.batches import Images, chunks, sorted_by_shape
from ..data.labels import resolve_label_map
from ..utils.errors import PertinenceError, shown
from ..utils.modules import keeping_dtype
from ..utils.validation import is_commit, is_name
from .cards import read_licence
from .costs import count_gmacs
from .entry import QUANTIZATIONS, ExpertEntry
from .features import FeatureTap
from .loading import Checkpoint, open_checkpoint, size_options
from .preprocessing import Preprocessor, resolve_transform
from .reference import ExpertReference, LoadOptions
from .variants import quantized, smaller_transform


logger = logging.get_logger(__name__)

PIXELS_AT_ONCE = 2**16
"""What a CPU thread is given at once: 64 images of 32 x 32. With more the activations leave its cache, and every image
takes up to twice as long."""
LEAST_AT_ONCE = 4
ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters
ACCELERATED_PIXELS_AT_ONCE = 2**25
"""The same for an accelerator, where only memory bounds it: 668 images of 224 x 224."""


class Expert(nn.Module):
    """A frozen classifier with its own preprocessing, answering in the label order of the pool.

    Attributes:
        model: the classifier, as transformers loads it.
        entry: what the config stores of it.
        folder: where its own files lie (the Hub's are in the cache); None for a model that was given loaded.
        revision: commit or content hash of what was loaded; `entry` says which it was when its figures were measured.
    """

    def __init__(self, checkpoint: Checkpoint, entry: ExpertEntry, preprocessing: str = "exact"):
        super().__init__()
        checkpoint.model.eval().requires_grad_(False)
        self.is_convolutional = is_convolutional(checkpoint.model)
        checkpoint.model.to(memory_format=self.memory_format)
        self.checkpoint = checkpoint
        self.model = quantized(checkpoint.model) if entry.quantization else checkpoint.model
        self.entry = entry
        self.folder = checkpoint.folder
        self.revision = checkpoint.revision
        self.preprocess = Preprocessor(entry.transform, checkpoint.processor, preprocessing)
        self._options = size_options(self.model) if entry.transform.is_smaller else {}
        self._features = FeatureTap.of(self.model)
        # Looked up for every batch, which takes transformers a walk over all modules; hidden from torch in a tuple.
        some = (p for p in self.model.parameters() if p.is_floating_point())
        self._parameter = (next(some, torch.empty(0)),)

    @property
    def memory_format(self) -> torch.memory_format:
        """That its network is laid out in."""
        return torch.channels_last if self.is_convolutional else torch.contiguous_format

    @property
    def device(self) -> torch.device:
        return self._parameter[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self._parameter[0].dtype

    @property
    def weights_key(self) -> int:
        """Experts that share a checkpoint have the same."""
        return id(self.checkpoint)

    @property
    def labels(self) -> dict[int, str]:
        """Its names of the pool's labels."""
        own, label_map = self.model.config.id2label, self.entry.label_map
        return dict(own) if label_map is None else {index: own[theirs] for index, theirs in enumerate(label_map)}

    def with_entry(self, entry: ExpertEntry) -> Expert:
        """The same expert under another entry: its network is shared.

        Args:
            entry: which may differ in what does not change the network: names, costs, labels, figures.
        """
        twin = copy.copy(self)
        twin.entry = entry
        return twin

    def train(self, mode: bool = True) -> Expert:
        """An expert stays as it was trained: always in evaluation mode."""
        return super().train(False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Expert:
        """Moved and cast as asked, but not cast where it computes in 8 bits, between which it is float32."""
        return super()._apply(keeping_dtype(fn) if self.entry.quantization else fn, recurse)

    @torch.no_grad()
    def forward(self, images: Images, max_batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify uint8 images.

        Args:
            images: see `Images`.
            max_batch: images that the network receives at once; default: as many as its device likes (`chunk_size`).

        Returns:
            logits (B, C) in the pool's label order, and features (B, F): the input of the final classification layer,
            averaged over positions; both float32.

        Raises:
            PertinenceError: the expert answered with NaN or infinity.
        """
        logits, features = self.answer(images, max_batch)
        self.check(logits.sum())
        return logits, features

    def answer(self, images: Images, max_batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as `forward`, but not checked: that would wait for everything before."""
        device, dtype = self.device, self.dtype
        if self.entry.quantization and device.type != "cpu":
            raise PertinenceError(
                f"expert {self.entry.name!r} computes in {self.entry.quantization}, which runs on the CPU only: "
                "use that device, or leave quantization out"
            )
        answers = []
        images, order = sorted_by_shape(images)
        for chunk in chunks(images, max_batch or self.chunk_size(device)):
            if not isinstance(chunk, torch.Tensor):
                chunk = [image.to(device, non_blocking=True) for image in chunk]
            elif chunk.device != device:
                chunk = chunk.to(device, non_blocking=True)
            pixel_values = self.preprocess(chunk).to(device, dtype, memory_format=self.memory_format)
            answers.append(self._features.run(self.model, pixel_values, **self._options))
        logits, features = answers[0] if len(answers) == 1 else map(torch.cat, zip(*answers, strict=True))
        if order is not None:
            back = torch.tensor(order).argsort().to(device, non_blocking=True)
            logits, features = logits[back], features[back]
        logits, features = logits.float(), features.float()
        if self.entry.label_map is not None:
            logits = logits[:, self.entry.label_map]
        return logits, features

    def check(self, total: torch.Tensor | float) -> None:
        """Raise `PertinenceError` where the sum of what `answer` gave is not finite, as then not all scores are."""
        if not math.isfinite(total):
            raise PertinenceError(
                f"expert {self.entry.name!r} answers with NaN or infinite scores: check its weights, and its "
                f"dtype ({self.dtype})"
            )

    def compile_network(self, options: dict[str, Any]) -> None:
        """Compile the network, in place, with options of `torch.compile`."""
        # Else all experts that share code, as those of timm do, share one count of recompilations: the last of a large
        # pool would stay eager.
        isolated = {"isolate_recompiles": True} if ISOLATES else {}
        self.model.compile(**isolated, **options)

    def chunk_size(self, device: torch.device) -> int:
        """Images that the network receives at once on a device."""
        height, width = self.preprocess.transform.size
        if device.type != "cpu":
            return max(1, ACCELERATED_PIXELS_AT_ONCE // (height * width))
        return max(LEAST_AT_ONCE, PIXELS_AT_ONCE // (height * width)) * torch.get_num_threads()


def is_convolutional(model: nn.Module) -> bool:
    """Whether a network is laid out with channels last, in which convolutions are faster: not one that has none but to
    cut an image into patches."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1


def load_expert(
    reference: ExpertReference,
    options: LoadOptions,
    preprocessing: str = "exact",
    is_stem: bool = False,
    opened: dict[Any, Checkpoint] | None = None,
) -> Expert:
    """Load one expert, or a stem, whose labels do not matter, and measure what the config stores of it."""
    name = reference.display_name
    if not is_name(name):
        raise PertinenceError(f"expert {shown(name)} needs a name of one line: give one with {{'name': ...}}")
    checkpoint = open_checkpoint(reference, options, is_stem, opened)
    model = checkpoint.model
    if not is_stem:
        _check_single_label(name, model.config)
    _check_channels(name, model.config)
    with _naming(name):
        transform = resolve_transform(checkpoint.processor)
    entry = ExpertEntry(
        name,
        reference.repo_id,
        checkpoint.revision,
        costs={},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        features=0,
        transform=transform,
        dtype=str(model.dtype).removeprefix("torch."),
        licence=read_licence(checkpoint, name),
    )
    how = reference.image_size, reference.image_size_by, reference.quantization
    return measured_expert(checkpoint, entry, preprocessing, *how, is_stem=is_stem)


def measured_expert(
    checkpoint: Checkpoint,
    entry: ExpertEntry,
    preprocessing: str,
    image_size: int | None = None,
    image_size_by: str = "crop",
    quantization: str | None = None,
    *,
    is_stem: bool = False,
) -> Expert:
    """The expert that a checkpoint is with an input and an arithmetic, and what is measured of it.

    Args:
        checkpoint: its weights, which experts that differ only in the following share.
        entry: of the whole expert; its costs and its features need not be measured yet.
        preprocessing: "exact" or "fast".
        image_size, image_size_by, quantization: see `ExpertReference`.
        is_stem: whether its labels do not matter.

    Raises:
        PertinenceError: the architecture does not take such images, or it is no classifier.
    """
    name, model = entry.name, checkpoint.model
    if quantization not in (None, *QUANTIZATIONS):
        raise PertinenceError(
            f"expert {name!r}: quantization={quantization!r} is not one of {', '.join(QUANTIZATIONS)}"
        )
    with _naming(name):
        transform = smaller_transform(checkpoint, entry.transform, image_size, image_size_by)
    gmacs = count_gmacs(model, transform.size, size_options(model) if transform.is_smaller else {})
    entry = entry.replace(costs={"gmacs": gmacs}, transform=transform, quantization=quantization)
    expert = Expert(checkpoint, entry, preprocessing)
    probe = torch.zeros(1, 3, *transform.size, dtype=torch.uint8)
    logits, features = expert(probe)
    if not is_stem and logits.shape != (1, model.config.num_labels):
        raise PertinenceError(
            f"expert {name!r} answers with scores of shape {tuple(logits.shape)} for one image, expected (1, "
            f"{model.config.num_labels}): it is not an image classifier"
        )
    return expert.with_entry(entry.replace(features=features.shape[1]))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say in an error which expert it is about."""
    try:
        yield
    except PertinenceError as error:
        raise PertinenceError(f"expert {name!r}: {error}") from error


def reload_expert(
    entry: ExpertEntry,
    repo_id: str,
    options: LoadOptions,
    preprocessing: str,
    is_stem: bool = False,
    opened: dict[Any, Checkpoint] | None = None,
) -> Expert:
    """Load an expert again as a saved model's config describes it, from `repo_id` (a Hub id or a folder)."""
    is_folder = Path(repo_id).is_absolute()
    reference = ExpertReference(repo_id, None if is_folder else entry.revision, entry.name)
    if options.dtype is None:
        options = replace(options, dtype=entry.dtype)
    checkpoint = open_checkpoint(reference, options, is_stem, opened)
    if is_folder and not is_commit(entry.revision) and checkpoint.revision != entry.revision:
        logger.warning(
            f"Expert {entry.name!r} in {repo_id} has changed since this model was made: its figures no longer "
            "hold. Search again, or restore the folder."
        )
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    if parameters != entry.parameters:
        raise PertinenceError(
            f"expert {entry.name!r} has {entry.parameters:,} parameters, but what lies in {repo_id} has "
            f"{parameters:,}: it is another network"
        )
    resolve_label_map(entry.label_map, checkpoint.model.config.id2label, entry.label_map, entry.name)
    return Expert(checkpoint, entry, preprocessing)


def _check_single_label(name: str, config: Any) -> None:
    if config.problem_type in ("multi_label_classification", "regression") or config.num_labels < 2:
        kind = config.problem_type or f"{config.num_labels} output(s)"
        raise PertinenceError(
            f"expert {name!r} is not a single-label classifier ({kind.replace('_', ' ')}): pertinence routes only "
            "classifiers that choose one of at least two labels"
        )
    if set(config.id2label) != set(range(config.num_labels)):
        raise PertinenceError(
            f"expert {name!r} numbers its labels {shown(sorted(config.id2label))}, expected 0 to "
            f"{config.num_labels - 1}: correct `id2label` in its config.json"
        )


def _check_channels(name: str, config: Any) -> None:
    """Refuse networks of other images than those of three colours."""
    arguments, pretrained = (getattr(config, key, None) or {} for key in ("model_args", "pretrained_cfg"))
    shape = pretrained.get("input_size")
    channels = getattr(config, "num_channels", None) or arguments.get("in_chans")
    if channels is None and isinstance(shape, (list, tuple)) and shape:
        channels = shape[0]
    if channels not in (None, 3):
        raise PertinenceError(f"expert {name!r} takes images of {shown(channels)} channels, expected 3 (RGB)")
