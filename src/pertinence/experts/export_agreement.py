"""Exported experts that count: their graphs are compared with torch on real images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..data.batches import Images, chunks, sorted_by_shape
from ..runtime.entry import GRAPH_BACKENDS, TORCH
from ..runtime.exports import Agreement, Export
from ..runtime.sessions import Session
from ..utils.errors import PertinenceError
from .expert import Expert, naming
from .exporting import exported
from .host_pixels import measure_host_pixels
from .preprocessing import is_of_transformers


LEAST_IMAGES = 256
"""Images that an export is compared on, at least."""
MOST_DIFFERENCE = 1e-3
TIE = 2e-3
"""Margin of the two largest logits below which either of them is the answer."""
AT_ONCE = 64


def export_expert(expert: Expert, home: str, root: Path, images: Images, with_features: bool = False) -> Export:
    """Export an expert to `experts/<home>/onnx/model.onnx` in a folder, and compare the graph with torch.

    Args:
        expert: a loaded expert.
        home: name of its folder: its pool index, or "stem".
        root: folder of the model.
        images: at least 256 real images.
        with_features: whether a decision reads its features.

    Raises:
        PertinenceError: it has no network in torch, it cannot be exported, or its graph gives other answers.
    """
    entry = expert.entry
    with naming(entry.name):
        if entry.backend in GRAPH_BACKENDS:  # which made a graph of it, not compared with torch yet
            expert = Expert.of(expert.checkpoint, entry.replace(backend=TORCH), expert.preprocessing)
        elif entry.backend != TORCH:
            raise PertinenceError(f"it runs in {entry.backend}: only experts in torch are exported to ONNX")
        if entry.transform.library == "own" and not is_of_transformers(expert.checkpoint.processor):
            raise PertinenceError("its preprocessing is code of its own, which would be needed beside its graph")
        if not expert.preprocess.has_fixed_size:
            raise PertinenceError(
                "its images have several sizes, and a graph takes one: give it a size of its own ({'image_size': N})"
            )
        export = exported(expert.checkpoint, entry, home, root, with_features)
        agreement = compare(expert, Session.of(root / export.file, export), images)
        return replace(export, agreement=agreement, host_pixels=measure_host_pixels(expert, images))


def compare(expert: Expert, session: Session, images: Images) -> Agreement:
    """Compare a graph with the network that it was exported from.

    Args:
        expert: the expert in torch.
        session: the opened graph.
        images: uint8 images.

    Raises:
        PertinenceError: there are too few images; or logits differ by more than 0.001, features by more than 0.001 of
            their size, or an answer is another one.
    """
    if len(images) < LEAST_IMAGES:
        raise PertinenceError(
            f"an export is compared with torch on at least {LEAST_IMAGES} images, got {len(images)}: give a larger "
            "data set or split"
        )
    agreement, apart = agreement_of(expert, session, images)
    if max(agreement.largest_difference, apart) > MOST_DIFFERENCE or agreement.same_answers < 1:
        raise PertinenceError(
            f"its graph does not answer as torch does: {agreement}, features within {apart:.2g} of their size; "
            f"expected all the same, and at most {MOST_DIFFERENCE}"
        )
    return agreement


def agreement_of(expert: Expert, session: Session, images: Images) -> tuple[Agreement, float]:
    """How far a graph agrees with the network of an expert in torch on images, and the largest difference of a
    feature, relative to the largest feature."""
    largest, apart, same = 0.0, 0.0, 0
    for pixels in pixels_of(expert, images):
        with torch.inference_mode():
            expected, expected_features = (one.float().cpu() for one in expert.network.run(pixels) if one is not None)
        logits, features = session.run(pixels.float().cpu().contiguous().numpy())
        if not all(np.isfinite(values).all() for values in (logits, features) if values is not None):
            raise PertinenceError("its graph gives NaN or infinite scores or features: check its weights")
        largest = max(largest, (torch.from_numpy(logits) - expected).abs().max().item())
        if features is not None:
            difference = (torch.from_numpy(features) - expected_features).abs().max()
            apart = max(apart, (difference / expected_features.abs().max().clamp_min(1)).item())
        best = expected.topk(2).values
        is_tie = best[:, 0] - best[:, 1] < TIE
        same += int(((torch.from_numpy(logits).argmax(1) == expected.argmax(1)) | is_tie).sum())
    return Agreement(len(images), largest, same / len(images)), apart


def pixels_of(expert: Expert, images: Images) -> Iterator[torch.Tensor]:
    """The input of an expert's network, in small batches, for uint8 images; not in their order."""
    ordered, device = sorted_by_shape(images)[0], expert.device
    for chunk in chunks(ordered, AT_ONCE):
        moved = chunk.to(device) if isinstance(chunk, torch.Tensor) else [image.to(device) for image in chunk]
        yield from expert.preprocess.batches(moved)
