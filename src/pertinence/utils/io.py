"""Atomic files: written under another name in the same folder, then renamed, so that they are whole or absent."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from safetensors import SafetensorError

from .errors import PertinenceError


SUFFIX = ".incomplete"
FORGOTTEN = 24 * 3600
"""Seconds after which any unfinished file counts as abandoned."""

UNWRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")
    if hasattr(errno, name)
}
"""`errno` of a full or failing disk, or of missing permission to write."""


@contextmanager
def beside(path: Path, advice: str = "free some space, or choose another folder") -> Iterator[Path]:
    """A temporary path on the same disk as `path`, for an unfinished file or folder; it is removed at the end, and if
    an error occurs the folders that were made for it, too.

    What killed processes left behind for the same path is removed first, see `remove_leftovers`.

    Args:
        path: the path that will finally be written.
        advice: what the user can do if it cannot be written.

    Raises:
        PertinenceError: the disk is full, the folder read-only, or the like.
    """
    missing = [parent for parent in path.parents if not os.path.exists(parent)]
    try:
        with writing(path, advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            prefix = f".{path.name}.{platform.node()}-{os.getpid()}."
            with TemporaryDirectory(
                dir=path.parent, prefix=prefix, suffix=SUFFIX, ignore_cleanup_errors=True
            ) as folder:
                yield Path(folder) / path.name
    except BaseException:
        for made in missing:
            with suppress(OSError):  # another process has put something there, or it could not be made
                made.rmdir()
        raise


def remove_leftovers(path: Path) -> None:
    """Remove the unfinished files that killed processes left behind when they wrote `path`.

    Those of a process of this machine are removed once the process has ended, all others after a day: they may come
    from another machine or from a container that had another name, or their process number may be in use again.
    """
    prefix = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(prefix)}*{SUFFIX}"):
        owner = left.name.removeprefix(prefix).removesuffix(SUFFIX)
        process = re.fullmatch(rf"{re.escape(platform.node())}-(\d{{1,9}})(\.\w+)?", owner)
        if (process and not psutil.pid_exists(int(process[1]))) or _age(left) > FORGOTTEN:
            _remove(left)


@contextmanager
def replaced(path: Path, advice: str = "free some space, or choose another folder") -> Iterator[Path]:
    """A temporary path to write a file or a folder to, which replaces `path` unless an error occurs; see `beside`."""
    with beside(path, advice) as temporary:
        yield temporary
        if temporary.is_dir() and path.exists():
            _remove(path)
        os.replace(temporary, path)  # raises OSError if another process has put a folder there meanwhile


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Explain errors of the disk, or of missing permission, in one sentence; other errors pass through."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors raises an error of its own, whose text contains the system's error number.
        found = re.search(r"os error (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(found[1]) if found else 0)
        if number not in UNWRITABLE:
            raise
        folder = next(parent for parent in path.parents if not parent.name.endswith(SUFFIX))
        raise PertinenceError(
            f"{path.name} cannot be written to {folder} ({os.strerror(number)}): {advice}"
        ) from error


def move_into(
    staged: Path, folder: Path, marks: Sequence[str], obsolete: Sequence[str] = (), merged: Sequence[str] = ()
) -> None:
    """Move everything in a folder into another folder, and replace files of the same names there.

    A process that is killed meanwhile leaves no mixture of old and new files that could pass for a whole: the files
    that identify the folder are removed first and moved last.

    Args:
        staged: the folder with the new files, on the same disk.
        folder: the folder to move them into.
        marks: names of the files that identify the folder, in the order in which they are moved.
        obsolete: patterns of files that are removed even if nothing replaces them.
        merged: names of folders whose files are added to those there, instead of replacing them.

    Raises:
        PertinenceError: another process is moving files into the same folder.
    """
    for mark in reversed(marks):
        (folder / mark).unlink(missing_ok=True)
    for path in (path for pattern in obsolete for path in folder.glob(pattern)):
        path.unlink(missing_ok=True)
    places = {mark: place for place, mark in enumerate(marks)}
    for name in merged:
        for path in (path for path in (staged / name).rglob("*") if path.is_file()):
            place = folder / path.relative_to(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        _remove(staged / name)
    for path in sorted(staged.iterdir(), key=lambda path: places.get(path.name, -1)):
        if path.is_dir():
            _remove(folder / path.name)
        try:
            os.replace(path, folder / path.name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise PertinenceError(f"another process is saving to {folder}: save there again") from error


def check_writable(folder: Path, advice: str) -> None:
    """Refuse a folder that cannot be made or written to, before the long work whose results it is for."""
    with writing(folder, advice):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def give_usual_mode(path: Path) -> None:
    """Give a file the usual mode of new files; safetensors writes files that only their owner can read."""
    fresh = path.with_name(f"{path.name}{SUFFIX}")
    fresh.touch()
    shutil.copymode(fresh, path)
    fresh.unlink()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _age(path: Path) -> float:
    """Seconds since a file or folder was last changed; 0 if another process has removed it meanwhile."""
    with suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too
    else:
        path.unlink(missing_ok=True)
