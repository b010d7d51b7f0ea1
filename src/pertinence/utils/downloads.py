"""Downloads from the Hub: checked, tried again where it may help, and explained where it does not."""

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

from .errors import PertinenceError, first_line
from .io import hash_file


logger = logging.get_logger(__name__)

T = TypeVar("T")
WEIGHTS = "*.safetensors"
PAUSES = (1, 4)
"""Seconds between attempts to download."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
OFFLINE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}
BROKEN = {
    "ConnectError", "ConnectTimeout", "PoolTimeout", "ReadError", "ReadTimeout", "RemoteProtocolError", "WriteError",
    "WriteTimeout",
}  # fmt: skip
GARBLED = {"JSONDecodeError", "UnicodeDecodeError"}
"""Names of errors of the Hub's client and of its HTTP library, which is not the same in all versions."""


class DamagedDownload(PertinenceError):
    """What came is not what the Hub announced."""


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
    chosen = {"allow_patterns": list(patterns), "ignore_patterns": ignored}

    def download() -> Path:
        with checked_downloads(repo_id, options.get("cache_dir")):
            return Path(snapshot_download(repo_id, revision=revision, **chosen, **options))

    folder = with_retries(download)
    # Where the client could not ask what there is, it takes for whole what the cache has.
    is_asked = not (options.get("local_files_only") or constants.HF_HUB_OFFLINE)
    if is_asked and WEIGHTS in patterns and not any(folder.glob(WEIGHTS)):
        api = HfApi(token=options.get("token"))
        there = with_retries(lambda: api.list_repo_files(repo_id, revision=revision))
        if any("/" not in path and path.endswith(".safetensors") for path in there):
            raise DamagedDownload(f"{repo_id} did not arrive whole: try again")
    return folder


def pin(repo_id: str, revision: str | None, name: str, **options: Any) -> str:
    """The commit that a revision is now, or was when it was last seen, by a file that it must have."""
    # The cache keeps a file under its commit; one look-up pins everything that follows, online and offline.

    def download() -> str:
        with checked_downloads(repo_id, options.get("cache_dir")):
            return hf_hub_download(repo_id, name, revision=revision, **options)

    return Path(with_retries(download)).parent.name


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
            path = Path(hf_hub_download(str(model_path), name, token=token, **options))
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
    """Compare what is downloaded meanwhile with what the Hub announced, which its own client does not.

    Raises:
        DamagedDownload: a file does not have the announced hash; it is removed from the cache.
        PertinenceError: the cache has no room.
    """
    blobs = Path(cache_dir or constants.HF_HUB_CACHE) / "--".join([f"{kind}s", *repo_id.split("/")]) / "blobs"
    started = time() - 1  # clocks of file systems may lag a little
    try:
        yield
    except Exception as error:
        full = [cause for cause in chain(error) if isinstance(cause, OSError) and cause.errno in NO_ROOM]
        if not full:
            raise
        raise PertinenceError(
            f"{repo_id} cannot be written to the cache ({full[0].strerror}): free some space, or move the cache with "
            f"HF_HOME{' (in Python also with cache_dir)' if kind == 'model' else ''}"
        ) from error
    finally:
        # What lay there before was checked when it came.
        for blob in blobs.glob("[0-9a-f]" * 40 + "*"):
            # Another process may find and remove the same.
            if blob.is_file() and blob.stat().st_mtime >= started and not _has_announced_hash(blob):
                blob.unlink(missing_ok=True)
                raise DamagedDownload(
                    f"a file of {repo_id} arrived damaged (it does not have the hash that the Hub announced), and was "
                    "removed from the cache: try again"
                )


def _has_announced_hash(blob: Path) -> bool:
    """Whether a file of the cache is what its name says: large files go by their sha256, others by that of git."""
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        return hash_file(blob) == blob.name
    if re.fullmatch("[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        # Mirrors announce the sha1 of the bytes alone.
        return blob.name in (sha1(b"blob %d\0" % len(content) + content).hexdigest(), sha1(content).hexdigest())
    return True  # unfinished


def with_retries(download: Callable[[], T]) -> T:
    """What a function got from the Hub, if need be at the third attempt: of many requests any may meet a moment's
    trouble."""
    for pause in (*PAUSES, None):
        try:
            return download()
        except Exception as error:
            if pause is None and type(error).__name__ in GARBLED:
                raise PertinenceError("what the Hub answered cannot be understood: try again later") from error
            if pause is None or not may_pass(error):
                raise
            logger.warning(f"The Hub was not reached as it should be ({first_line(error)}): trying again.")
            sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def may_pass(error: Exception) -> bool:
    """Whether it is a moment's trouble of the Hub, or of the way to it."""
    causes = chain(error)
    kinds = {type(cause).__name__ for cause in causes}
    if kinds & OFFLINE:
        return False
    is_broken = bool(kinds & BROKEN) or any("Consistency check failed" in str(cause) for cause in causes)
    is_damaged = isinstance(error, DamagedDownload) or type(error).__name__ in GARBLED
    return is_broken or is_damaged or (_status(causes) or 0) >= 500


def _status(causes: Sequence[BaseException]) -> int | None:
    """The HTTP status that an error goes back to, if any."""
    statuses = (getattr(getattr(cause, "response", None), "status_code", None) for cause in causes)
    return next((status for status in statuses if status), None)


def explain_hub(repo_id: str, revision: str | None, error: Exception, doing: str = "read") -> str | None:
    """What the Hub, or the way to it, has against a model being read (or what else is `doing`), and what to do; None
    where it is something else."""
    causes = chain(error)
    kinds = {type(cause).__name__ for cause in causes}
    if "RevisionNotFoundError" in kinds:
        vanished = (
            ": its owner has removed it, or rewritten the history; ask for it, or choose another revision"
            if re.fullmatch("[0-9a-f]{40}", revision or "")
            else ""
        )
        return f"{repo_id} has no revision {revision!r} on the Hub{vanished}"
    if "GatedRepoError" in kinds:
        return f"{repo_id} is gated: ask for access on its page and pass a token"
    if "RepositoryNotFoundError" in kinds:
        return (
            f"{repo_id} is neither a local folder nor a repository on the Hub that you may read; check the name, or "
            "pass a token if it is private"
        )
    status = _status(causes)
    if status in (401, 403):
        return f"the Hub refuses this token for {repo_id}: check it with `hf auth whoami`, or `hf auth login` anew"
    if status is not None and status >= 500:
        return f"the Hub cannot serve {repo_id} now (it answered {status}): try again later"
    if kinds & OFFLINE:
        return (
            f"{repo_id} is not in the cache, and the Hub cannot be reached: connect and load it once, and check "
            "HF_HUB_OFFLINE and local_files_only"
        )
    if kinds & BROKEN:
        return f"the connection to the Hub broke while {repo_id} was {doing}: try again"
    if kinds & GARBLED and doing != "read":
        return "what the Hub answered cannot be understood: try again later"
    if any("Consistency check failed" in str(cause) for cause in causes):
        return f"a file of {repo_id} did not arrive whole: try again"
    if "HFValidationError" in kinds:
        return f"{repo_id!r} is neither a local folder nor a valid Hub id"
    if "RemoteEntryNotFoundError" in kinds:
        return f"{repo_id} has no config.json, so it is not a checkpoint"
    return None


def chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, one after the other."""
    causes, cause = [], error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes
