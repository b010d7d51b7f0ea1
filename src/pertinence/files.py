"""Files that are whole or absent: written under another name, then renamed; and what lies beside a model."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


SUFFIX = ".incomplete"
RECORD = "search_result.json"
"""What tells the folder of a result."""
SETTINGS = "search.yaml"
BASELINES = "baselines.safetensors"
SEEN = "seen_images.safetensors"
FRONT_FIGURE, SHARES_FIGURE, CONVERGENCE_FIGURE, EXAMPLES_FIGURE = (
    "front.png",
    "shares.png",
    "convergence.png",
    "examples.png",
)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name next to `path` for what is not finished; whatever has the name in the end is removed.

    What a killed process of this machine left behind is removed on the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{platform.node()}-"
    for stale in path.parent.glob(f"{glob.escape(prefix)}*{SUFFIX}"):
        if not _is_running(stale.name.removeprefix(prefix).removesuffix(SUFFIX)):
            _remove(stale)
    temporary = path.with_name(f"{prefix}{os.getpid()}{SUFFIX}")
    _remove(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder to, which takes the place of `path` when all went well."""
    with beside(path) as temporary:
        yield temporary
        if temporary.is_dir() and path.exists():
            _remove(path)
        os.replace(temporary, path)  # onto a folder that another process has put there since: an OSError


def update_config(path: Path, values: Mapping[str, Any]) -> None:
    """Replace some values of a model's config.json."""
    values = json.loads(path.read_text()) | dict(values)
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def find_table_record(model: str | os.PathLike) -> Path | None:
    """The record in the folder of a search on a table of predictions, whose result has no model."""
    folder = Path(model)
    return folder / RECORD if (folder / RECORD).is_file() and not (folder / "config.json").exists() else None


def share(path: Path) -> None:
    """Give a file the mode of any new file; those that safetensors writes are for their owner alone."""
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the mode of any new file."""
    save_file(dict(tensors), path, metadata=metadata)
    share(path)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):  # somebody else's, or of a machine whose name begins like this one's
        return True
    return True


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # another process may be removing the same
    else:
        path.unlink(missing_ok=True)
