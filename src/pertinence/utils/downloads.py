"""Downloads from the Hub: compared with the announced hashes, and tried again where that may help."""

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
    """Folder of the cache with some files of a model repository, downloaded and checked where they are not there yet.

    Args:
        repo_id: Hub id.
        revision: branch, tag or commit.
        patterns: of the files; those without a folder are of files at the root.
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
    # Where the client could not list the repository, it returns what the cache has of it.
    is_asked = not (options.get("local_files_only") or constants.HF_HUB_OFFLINE)
    if is_asked and WEIGHTS in patterns and not any(folder.glob(WEIGHTS)):
        api = HfApi(token=options.get("token"))
        there = with_retries(lambda: api.list_repo_files(repo_id, revision=revision))
        if any("/" not in path and path.endswith(".safetensors") for path in there):
            raise DamagedDownload(f"{repo_id} did not arrive whole: try again")
    return folder


def fetch_file(repo_id: str, name: str, **options: Any) -> Path:
    """A file of a model repository in the cache, downloaded and checked where it is not there yet.

    Args:
        repo_id: Hub id.
        name: of the file.
        options: of `hf_hub_download`.

    Raises:
        PertinenceError: the file is not what the Hub announced.
    """

    def download() -> Path:
        with checked_downloads(repo_id, options.get("cache_dir")):
            return Path(hf_hub_download(repo_id, name, **options))

    return with_retries(download)


def pin(repo_id: str, revision: str | None, name: str, **options: Any) -> str:
    """The commit that a revision is now, or was when it was last seen, by a file that it must have."""
    # The cache keeps a file under its commit; one look-up pins everything that follows, online and offline.
    return fetch_file(repo_id, name, revision=revision, **options).parent.name


def find_file(
    model_path: str | os.PathLike, name: str, token: str | bool | None = None, **options: Any
) -> Path | None:
    """A file that lies beside a model, in its folder or on the Hub; None where there is none.

    Args:
        model_path: folder or Hub id.
        name: of the file.
        token: of the Hub.
        options: of `hf_hub_download`.
    """
    path = Path(model_path) / options.get("subfolder", "") / name
    if not Path(model_path).is_dir():
        try:
            path = fetch_file(str(model_path), name, token=token, **options)
        except LocalEntryNotFoundError as error:
            raise PertinenceError(
                f"whether {model_path} has a {name} is not known, as the Hub cannot be reached and the cache does not "
                f"say: get all of it with `hf download {model_path}` while there is a connection"
            ) from error
        except EntryNotFoundError:
            return None
    return path if path.is_file() else None


@contextmanager
def checked_downloads(repo_id: str, cache_dir: str | None = None, kind: str = "model") -> Iterator[None]:
    """Compare everything that is downloaded within the context with the hash that the Hub announced.

    The Hub's client does not. The cache names every file by its announced hash, so this asks the Hub for nothing, and
    reads only what is new. (`HfApi.verify_repo_checksums` lists the whole repository again, and reads all of it.)

    Args:
        repo_id: Hub id.
        cache_dir: of the Hub's client.
        kind: "model" or "dataset".

    Raises:
        DamagedDownload: a file does not have the announced hash; it is removed from the cache.
        PertinenceError: the cache has no room.
    """
    blobs = Path(cache_dir or constants.HF_HUB_CACHE) / "--".join([f"{kind}s", *repo_id.split("/")]) / "blobs"
    started = time() - 1  # clocks of file systems may lag a little
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
            # Another process may find and remove the same file.
            if blob.is_file() and blob.stat().st_mtime >= started and not _has_announced_hash(blob):
                blob.unlink(missing_ok=True)
                raise DamagedDownload(
                    f"a file of {repo_id} arrived damaged (it does not have the hash that the Hub announced), and was "
                    "removed from the cache: try again"
                )


def _has_announced_hash(blob: Path) -> bool:
    """Whether a file of the cache has the hash that is its name: sha256 for large files, git's for others."""
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        return hash_file(blob) == blob.name
    if re.fullmatch("[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        # Mirrors announce the sha1 of the bytes alone.
        return blob.name in (sha1(b"blob %d\0" % len(content) + content).hexdigest(), sha1(content).hexdigest())
    return True  # unfinished


def with_retries(download: Callable[[], T]) -> T:
    """The result of a function that asks the Hub; it is called up to three times while the error may pass."""
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
