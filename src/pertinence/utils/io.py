"""Files that are whole or absent: written under another name, then renamed; and what lies beside a model."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file

from .errors import MALFORMED, PertinenceError, explain, first_line


SUFFIX = ".incomplete"
FORGOTTEN = 24 * 3600
"""Seconds after which what is unfinished is taken for abandoned."""


MAX_TEXT, MAX_PARTS = 2**26, 2**20
"""Bytes of a text file that somebody made, and lists and mappings in it: of these twenty million fit into the bytes,
and would take four GB."""
MAX_YAML = 2**19
"""Bytes of YAML, which is slow to read."""

UNWRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")
    if hasattr(errno, name)
}
"""Numbers of the errors of a disk, or of the right to write to it."""


@contextmanager
def beside(path: Path, advice: str = "free some space, or choose another folder") -> Iterator[Path]:
    """A name next to `path` for what is not finished; whatever has the name in the end is removed.

    What a killed process left behind is removed on the way: of this machine at once, and a day later whoever it is of:
    of another machine, of a container that had another name, or of a process whose number another has now.

    Args:
        path: what is to be written.
        advice: what to do where it cannot be written.

    Raises:
        PertinenceError: the disk is full, the folder read-only, or the like.
    """
    prefix = f".{path.name}."
    own = f"{prefix}{platform.node()}-"
    temporary = path.with_name(f"{own}{os.getpid()}.{threading.get_ident()}{SUFFIX}")
    with writing(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"{glob.escape(prefix)}*{SUFFIX}"):
            process = stale.name.removeprefix(own).removesuffix(SUFFIX).partition(".")[0]
            if stale.name.startswith(own) and not _is_running(process) or _is_forgotten(stale):
                _remove(stale)
        _remove(temporary)
        try:
            yield temporary
        finally:
            _remove(temporary)


@contextmanager
def replaced(path: Path, advice: str = "free some space, or choose another folder") -> Iterator[Path]:
    """A name to write a file or a folder to, which takes the place of `path` when all went well; see `beside`."""
    with beside(path, advice) as temporary:
        yield temporary
        if temporary.is_dir() and path.exists():
            _remove(path)
        os.replace(temporary, path)  # onto a folder that another process has put there since: an OSError


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Say in a sentence where the disk, or the right to it, is at an end meanwhile; other errors pass."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has an error of its own, which says the number of the system's.
        found = re.search(r"os error (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(found[1]) if found else None)
        if number not in UNWRITABLE:
            raise
        folder = next(parent for parent in path.parents if not parent.name.endswith(SUFFIX))
        raise PertinenceError(
            f"{path.name} cannot be written to {folder} ({os.strerror(number)}): {advice}"
        ) from error


def move_into(staged: Path, folder: Path, marks: Sequence[str], obsolete: Sequence[str] = ()) -> None:
    """Move all that lies in a folder to another, where it takes the place of what has the same names.

    Whoever is killed on the way leaves no mixture of old and new that could be taken for a whole: the files that tell
    what the folder is go first and come last.

    Args:
        staged: where it lies, on the same disk.
        folder: where it goes.
        marks: names of those files, in the order in which they come.
        obsolete: patterns of what goes, also where nothing takes its place.
    """
    for mark in reversed(marks):
        (folder / mark).unlink(missing_ok=True)
    for path in (path for pattern in obsolete for path in folder.glob(pattern)):
        path.unlink(missing_ok=True)
    places = {mark: place for place, mark in enumerate(marks)}
    for path in sorted(staged.iterdir(), key=lambda path: places.get(path.name, -1)):
        if path.is_dir():
            _remove(folder / path.name)
        try:
            os.replace(path, folder / path.name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise PertinenceError(f"somebody else is saving to {folder}: save there again") from error


def check_writable(folder: Path, advice: str) -> None:
    """Refuse, before long work for it, a folder that cannot be made or written to."""
    with writing(folder, advice):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def read_text(path: Path) -> str:
    """What is in a text file of at most `MAX_TEXT` bytes; raises `PertinenceError` where it has more."""
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise PertinenceError(f"it has {size:,} bytes, expected at most {MAX_TEXT:,}")
    return path.read_text(encoding="utf-8")


def check_json(text: str) -> None:
    """Raise `PertinenceError` where it would take much memory and time to understand a text."""
    if len(text) > MAX_TEXT or text.count("{") + text.count("[") > MAX_PARTS:
        raise PertinenceError(f"it has more than {MAX_TEXT:,} bytes or {MAX_PARTS:,} lists and mappings")


def parse_json(text: str) -> Any:
    """Values from JSON; raises `ValueError` where it is damaged, or would take much memory and time."""
    check_json(text)
    return json.loads(text)


class _PlainLoader(yaml.SafeLoader):
    """Without aliases: nine lines of them stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name): write out what they stand for")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """Plain values from YAML; raises `yaml.YAMLError` where it is damaged, too long or has aliases."""
    if len(text) > MAX_YAML:
        raise yaml.YAMLError(f"it has more than {MAX_YAML:,} bytes")
    try:
        return yaml.load(text, _PlainLoader)  # noqa: S506
    except MALFORMED as error:  # of values that are not what they are marked as
        raise yaml.YAMLError(explain(error)) from error


def read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any] | None:
    """What a file beside a model holds; None without one. Raises `PertinenceError` where it is damaged."""
    if not path.is_file():
        return None
    try:
        values = parse(read_text(path))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        what = "too large" if isinstance(error, PertinenceError) else "damaged"
        raise PertinenceError(f"{path} is {what} ({first_line(error)}): search again, or remove it") from error
    if not isinstance(values, dict):
        raise PertinenceError(f"{path} is damaged: search again, or remove it")
    return values


_reading_umask = threading.Lock()


def give_usual_mode(path: Path) -> None:
    """Give a file the mode of any new file; those that safetensors writes are for their owner alone."""
    with _reading_umask:
        umask = os.umask(0o077)  # it can only be read by setting it
        os.umask(umask)
    path.chmod(0o666 & ~umask)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the mode of any new file."""
    save_file(dict(tensors), path, metadata=metadata)
    give_usual_mode(path)


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names and numbers, those of floating point as float32, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        digest.update(f"{name}\0{tuple(values.shape)}\0".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_forgotten(path: Path) -> bool:
    with suppress(OSError):  # another process may be removing the same
        return time.time() - path.stat().st_mtime > FORGOTTEN
    return False


def _is_running(process: str) -> bool:
    if os.name == "nt":  # where asking is a signal that ends it
        return True
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
