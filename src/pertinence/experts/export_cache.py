"""The cache of graphs that were made because a checkpoint was loaded for a backend of graphs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from transformers.utils import logging

from ..runtime.entry import ExpertEntry
from ..runtime.exports import Export
from ..utils.errors import MALFORMED
from ..utils.io import replaced
from .exporting import exported
from .loading import Checkpoint


logger = logging.get_logger(__name__)

CACHE = Path(HF_HOME) / "pertinence" / "exports"
RECORD = "export.json"


def cached_export(checkpoint: Checkpoint, entry: ExpertEntry) -> tuple[Path, Export]:
    """The graph of a checkpoint, exported now if it is not in the cache; it is not compared with torch.

    Raises:
        PertinenceError: it cannot be exported.
    """

    def make(folder: Path) -> Export:
        logger.info(f"Exporting {entry.name} to ONNX.")
        return exported(checkpoint, entry, "0", folder, with_features=True)

    return cached(as_bytes(checkpoint.revision, entry.transform.to_dict(), torch.__version__), make)


def cached(identity: bytes, make: Callable[[Path], Export]) -> tuple[Path, Export]:
    """A graph of the cache, made now if it is not there or damaged.

    Args:
        identity: everything that the graph depends on.
        make: writes the graph to a folder, and returns what is recorded about it.

    Returns:
        The file, and what is recorded about it.
    """
    root = CACHE / hashlib.sha256(identity).hexdigest()[:32]
    try:
        export = Export.from_dict(json.loads((root / RECORD).read_text()))
        export.read(root / export.file)
    except (OSError, *MALFORMED):
        with replaced(root) as folder:  # both files or none, whoever else makes them at the same time
            folder.mkdir(parents=True)
            export = make(folder)
            (folder / RECORD).write_text(json.dumps(export.to_dict()))
    return root / export.file, export


def as_bytes(*values: Any) -> bytes:
    """Values of JSON as a part of an identity."""
    return json.dumps(values, sort_keys=True).encode()
