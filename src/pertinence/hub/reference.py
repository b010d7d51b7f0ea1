"""The routing reference: how the report images were routed, for comparison by a routing monitor. It is a file beside
the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from ..experts.checkpoint_files import Tensors
from ..routing.confidence import CONFIDENCE_BINS
from ..routing.front import Front
from ..routing.heads import FORMER
from ..utils.errors import PertinenceError
from ..utils.tensors import save_tensors
from .layout import ROUTING_REFERENCE


Reference = dict[str, torch.Tensor]
"""int64 (N, 32) by name of the operating point: `count_answers` of the report images."""
COUNTS, HEADS = "counts", "heads_hash"


def reference_shape(front: Front) -> tuple[int, int, int]:
    """Shape of the counts of all points of a front."""
    return len(front), len(front.expert_names), CONFIDENCE_BINS


def save_reference(reference: Mapping[str, torch.Tensor], front: Front, heads_hash: str, folder: Path) -> None:
    """Write the file; a model that was not searched has none.

    Args:
        reference: counts of some points of the front.
        front: front of the model.
        heads_hash: hash of its weights.
        folder: folder of the model.
    """
    if not reference:
        return
    counts = torch.zeros(reference_shape(front), dtype=torch.int64)
    for row, point in enumerate(front):
        if point.name in reference:
            counts[row] = reference[point.name]
    save_tensors({COUNTS: counts}, folder / ROUTING_REFERENCE, {HEADS: heads_hash})


def load_reference(folder: Path, front: Front, heads_hash: str | None, source: str) -> Reference:
    """Read the file of a model, if it has one.

    Args:
        folder: folder of the model.
        front: front of the model.
        heads_hash: hash of its weights; None: the model was saved by an earlier version, which stored none.
        source: where the model comes from, for messages.

    Raises:
        PertinenceError: the file is damaged, or belongs to another model.
    """
    path = folder / ROUTING_REFERENCE
    if not path.is_file():
        return {}
    found = Tensors.of(path)
    if found.shapes != {COUNTS: reference_shape(front)} or found.dtypes != {COUNTS: "I64"}:
        raise PertinenceError(f"{ROUTING_REFERENCE} of {source} does not fit its front: fetch it again")
    with safe_open(path, framework="pt") as file:
        if heads_hash is not None and (file.metadata() or {}).get(HEADS) != heads_hash:
            raise PertinenceError(
                f"config.json and {ROUTING_REFERENCE} of {source} do not belong together: it was read while another "
                "model was saved there, or copied in part; load it again, or save or copy it anew"
            )
        return parse_counts(file.get_tensor(COUNTS), front, ROUTING_REFERENCE, source)


def former_counts(paths: Sequence[Path]) -> torch.Tensor | None:
    """The counts among the weights of a model, float32 (points, N, 32); None if there are none."""
    for path in paths:
        with safe_open(path, framework="pt") as file:
            if FORMER in file.keys():  # noqa: SIM118
                return file.get_tensor(FORMER).float()
    return None


def parse_counts(counts: torch.Tensor, front: Front, name: str, source: str) -> Reference:
    """The counts by operating point, without points that nothing was counted for.

    Args:
        counts: (points, N, 32), in the order of the front.
        front: front of the model.
        name, source: name of the counts and source of the model, for messages.

    Raises:
        PertinenceError: the values are not counts.
    """
    if not counts.isfinite().all() or (counts < 0).any():
        raise PertinenceError(f"the heads of {source} hold impossible numbers ({name}): fetch them again")
    return {point.name: row.long() for point, row in zip(front, counts, strict=True) if row.any()}
