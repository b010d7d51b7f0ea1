"""Downloads from the Hub: checked against the announced hashes, and retried where that may help."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path
from time import sleep, time
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers.utils import logging

from .errors import PertinenceError, causes_of, first_line
from .hub_errors import GARBLED, DamagedDownload, may_pass
from .io import hash_file


logger = logging.get_logger(__name__)

T = TypeVar("T")
WEIGHTS = "*.safetensors"
PAUSES = (1, 4)
"""Seconds between attempts to download."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def fetch(repo_id: str, revision: str | None, patterns: Sequence[str], **options: Any) -> Path:
    """Download some files of a model repository into the cache, and return their folder; cached files are not
    downloaded again.

    Args:
        repo_id: Hub id.
        revision: branch, tag or commit.
        patterns: glob patterns of the files; if none contains a folder, only files at the root are downloaded.
        options: `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        PertinenceError: a file is not what the Hub announced.
    """
    ignored = None if any("/" in pattern for pattern in patterns) else ["*/*"]

    def download() -> Path:
        with checked_downloads(repo_id, options.get("cache_dir")):
            folder = snapshot_download(
                repo_id, revision=revision, allow_patterns=list(patterns), ignore_patterns=ignored, **options
            )
        return Path(folder)

    folder = with_retries(download)
    # If the client could not list the repository, it returns what the cache has of it, which may lack the weights.
    is_asked = not (options.get("local_files_only") or constants.HF_HUB_OFFLINE)
    if is_asked and WEIGHTS in patterns and not any(folder.glob(WEIGHTS)):
        api = HfApi(token=options.get("token"))
        there = with_retries(lambda: api.list_repo_files(repo_id, revision=revision))
        if any("/" not in path and path.endswith(".safetensors") for path in there):
            raise DamagedDownload(f"{repo_id} did not arrive whole: try again")
    return folder


def fetch_file(repo_id: str, name: str, **options: Any) -> Path:
    """Path of a cached file of a model repository; it is downloaded and checked if the cache does not have it.

    Args:
        repo_id: Hub id.
        name: file name.
        options: passed to `hf_hub_download`.

    Raises:
        PertinenceError: the file is not what the Hub announced.
    """

    def download() -> Path:
        with checked_downloads(repo_id, options.get("cache_dir")):
            return Path(hf_hub_download(repo_id, name, **options))

    return with_retries(download)


def pin(repo_id: str, revision: str | None, name: str, **options: Any) -> str:
    """The commit that a revision points to (offline: pointed to when it was last cached).

    Args:
        repo_id: Hub id.
        revision: branch, tag or commit.
        name: a file that the revision must have.
        options: passed to `hf_hub_download`.
    """
    # The cache keeps a file under its commit, so one look-up pins everything that follows, online and offline.
    return fetch_file(repo_id, name, revision=revision, **options).parents[name.count("/")].name


def find_file(
    model_path: str | os.PathLike, name: str, token: str | bool | None = None, **options: Any
) -> Path | None:
    """Path of a file beside a model, in its folder or on the Hub; None if it does not exist.

    Args:
        model_path: folder or Hub id.
        name: file name.
        token: Hub token.
        options: passed to `hf_hub_download`.
    """
    path = Path(model_path) / options.get("subfolder", "") / name
    if not Path(model_path).is_dir():
        try:
            path = fetch_file(str(model_path), name, token=token, **options)
        except LocalEntryNotFoundError as error:
            raise PertinenceError(
                f"it is not known whether {model_path} has a {name}: the Hub cannot be reached, and the cache cannot "
                f"tell. Download everything with `hf download {model_path}` while there is a connection"
            ) from error
        except EntryNotFoundError:
            return None
    return path if path.is_file() else None


@contextmanager
def checked_downloads(repo_id: str, cache_dir: str | None = None, kind: str = "model") -> Iterator[None]:
    """Compare every file downloaded within the context with the hash that the Hub announced.

    The Hub's client does not do this. The cache names each file by its announced hash, so the check sends no requests
    and reads only new files. (`HfApi.verify_repo_checksums` lists the whole repository again and reads all of it.)

    Args:
        repo_id: Hub id.
        cache_dir: cache folder of the Hub's client; None: its default.
        kind: "model" or "dataset".

    Raises:
        DamagedDownload: a file does not have the announced hash; it is removed from the cache.
        PertinenceError: the disk of the cache is full or read-only.
    """
    blobs = Path(cache_dir or constants.HF_HUB_CACHE) / "--".join([f"{kind}s", *repo_id.split("/")]) / "blobs"
    started = time() - 1  # the clock of the file system may lag a little
    try:
        yield
    except Exception as error:
        full = [cause for cause in causes_of(error) if isinstance(cause, OSError) and cause.errno in NO_ROOM]
        if not full:
            raise
        raise PertinenceError(
            f"{repo_id} cannot be written to the cache ({full[0].strerror}): free some space, or move the cache with "
            f"HF_HOME{' (in Python also with cache_dir)' if kind == 'model' else ''}"
        ) from error
    finally:
        for blob in blobs.glob("[0-9a-f]" * 40 + "*"):
            # Another process may have found and removed the same file.
            if blob.is_file() and blob.stat().st_mtime >= started and not _has_announced_hash(blob):
                blob.unlink(missing_ok=True)
                raise DamagedDownload(
                    f"a file of {repo_id} arrived damaged (it does not have the hash that the Hub announced), and was "
                    "removed from the cache: try again"
                )


def _has_announced_hash(blob: Path) -> bool:
    """Whether a cached file has the hash that it is named by: SHA-256 for large files, git's SHA-1 for others."""
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        return hash_file(blob) == blob.name
    if re.fullmatch("[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        # Mirrors announce the SHA-1 of the bytes alone.
        return blob.name in (sha1(b"blob %d\0" % len(content) + content).hexdigest(), sha1(content).hexdigest())
    return True  # unfinished


def with_retries(download: Callable[[], T]) -> T:
    """Call a function that asks the Hub, and return its result; up to three attempts if errors may be temporary."""
    for pause in (*PAUSES, None):
        try:
            return download()
        except Exception as error:
            if pause is None and isinstance(error, GARBLED):
                raise PertinenceError("the answer of the Hub cannot be understood: try again later") from error
            if pause is None or not may_pass(error):
                raise
            logger.warning(f"A request to the Hub failed ({first_line(error)}): trying again.")
            sleep(pause)
    raise AssertionError("the last attempt returns or raises")
