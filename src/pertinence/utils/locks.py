"""A folder of unfinished work, locked against other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.utils import logging

from .errors import PertinenceError
from .io import UNWRITABLE, check_writable, writing


logger = logging.get_logger(__name__)

LOCK = "lock"
PATIENCE = 10
"""Seconds to wait for the lock of a folder: workers of a killed process may hold it a little longer."""


@contextmanager
def locked(folder: Path, busy: str, advice: str) -> Iterator[None]:
    """Lock a folder within the context, or until this process ends in any way; it is made, and removed if it is empty
    at the end.

    Args:
        folder: the folder.
        busy: what is wrong, and what to do, if another process has locked it.
        advice: what to do if it cannot be written to.

    Raises:
        PertinenceError: another process has locked it, or it is not writable.
    """
    check_writable(folder, advice)
    lock = FileLock(folder / LOCK)
    with writing(folder, advice):
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise PertinenceError(busy) from error
        except (NotImplementedError, OSError) as error:
            if getattr(error, "errno", None) in UNWRITABLE:
                raise
            logger.warning(f"{folder} cannot be locked ({error}): make sure that nothing else uses it meanwhile.")
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # fails if there is something to continue, or if it has been removed
            folder.rmdir()
