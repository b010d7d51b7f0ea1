"""Experts of saved models: loaded again, and compared with what their entries say of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..data.labels import resolve_label_map
from ..runtime.entry import ExpertEntry
from ..utils.errors import PertinenceError
from ..utils.validation import is_commit
from .checkpoint_files import is_content
from .expert import Expert
from .loading import Checkpoint, open_checkpoint
from .reference import ExpertReference, LoadOptions


logger = logging.get_logger(__name__)


def reload_expert(
    entry: ExpertEntry,
    repo_id: str,
    options: LoadOptions,
    preprocessing: str,
    is_stem: bool = False,
    opened: dict[Any, Checkpoint] | None = None,
) -> Expert:
    """Load an expert as a saved model's config describes it, from `repo_id` (a Hub id or a folder)."""
    is_folder = Path(repo_id).is_absolute()
    reference = ExpertReference(repo_id, None if is_folder else entry.revision, entry.name)
    if options.dtype is None:
        options = replace(options, dtype=entry.dtype)
    checkpoint = open_checkpoint(reference, options, is_stem, opened, entry.code)
    if unpinned := sorted(set(checkpoint.code) - set(entry.code or {})):
        logger.warning(
            f"The code of expert {entry.name!r} in {', '.join(unpinned)} is not pinned, as this model was saved by an "
            "earlier version: its newest commit runs, and its answers may change. Save the model again to pin it."
        )
    is_pinned = not is_folder or is_commit(entry.revision)
    if not is_pinned and not is_content(entry.revision, checkpoint.revision, Path(repo_id)):
        logger.warning(
            f"Expert {entry.name!r} in {repo_id} has changed since this model was made: its figures no longer "
            "hold. Search again, or restore the folder."
        )
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    if parameters != entry.parameters:
        raise PertinenceError(
            f"expert {entry.name!r} has {entry.parameters:,} parameters, but the checkpoint in {repo_id} has "
            f"{parameters:,}: it is another network"
        )
    if entry.label_map is not None:
        resolve_label_map(
            entry.label_map, checkpoint.labels, dict.fromkeys(range(len(entry.label_map)), ""), entry.name
        )
    return Expert.of(checkpoint, entry, preprocessing)
