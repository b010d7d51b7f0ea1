"""Errors of the Hub and of the connection to it: which are temporary, and what a user can do about the others."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .errors import PertinenceError, causes_of


http: Any = import_module(HfHubHTTPError.__bases__[0].__module__)
"""The HTTP library of the Hub's client: httpx, or httpx2 from huggingface_hub 2 on."""
OFFLINE = (LocalEntryNotFoundError, OfflineModeIsEnabled)
BROKEN = (http.NetworkError, http.RemoteProtocolError, http.TimeoutException)
GARBLED = (json.JSONDecodeError, UnicodeDecodeError)
INCOMPLETE = "Consistency check failed"
"""How the Hub's client says, in a general `OSError`, that a file does not have the announced size."""


class DamagedDownload(PertinenceError):
    """A downloaded file is not what the Hub announced."""


def is_offline(error: Exception) -> bool:
    """Whether the Hub was not asked, or not reached, for what is not in the cache."""
    return _any_is(causes_of(error), OFFLINE)


def may_pass(error: Exception) -> bool:
    """Whether the error is temporary, so that the same request may succeed later."""
    if is_offline(error):
        return False
    causes = causes_of(error)
    is_damaged = isinstance(error, (DamagedDownload, *GARBLED))
    return is_damaged or _any_is(causes, BROKEN) or _is_incomplete(causes) or (_status(causes) or 0) >= 500


def check_place(place: str) -> None:
    """Raise `PertinenceError`, without asking the Hub, if a place is no folder here, and no name of a repository."""
    if Path(place).is_dir():
        return
    if Path(place).is_file():
        raise PertinenceError(f"{place} is a file, expected a folder or a Hub id")
    try:
        validate_repo_id(place)
    except HFValidationError:
        raise PertinenceError(
            f"there is no folder {place} here, and no repository on the Hub can have this name: check the path"
        ) from None


def explain_place(place: str, revision: str | None, error: Exception) -> str | None:
    """Explain why what a user named cannot be read from the Hub, as `explain_hub` does, and that it is no folder."""
    reason = explain_hub(place, revision, error)
    was_answered = not (may_pass(error) or is_offline(error))
    if reason is None or revision is not None or was_answered or Path(place).exists():
        return reason
    return f"there is no folder {place} here, so it was taken as a repository on the Hub: {reason}"


def explain_hub(repo_id: str, revision: str | None, error: Exception, doing: str = "read") -> str | None:
    """Explain why a request to the Hub failed and what to do; None if the error has another origin.

    Args:
        repo_id, revision: the repository that was requested.
        error: the error that was raised.
        doing: what was being done, as a past participle: "the connection broke while the model was {doing}".
    """
    causes = causes_of(error)
    status = _status(causes)
    if _any_is(causes, RevisionNotFoundError):
        vanished = (
            ": its owner has removed it, or rewritten the history; ask for it, or choose another revision"
            if re.fullmatch("[0-9a-f]{40}", revision or "")
            else ""
        )
        return f"{repo_id} has no revision {revision!r} on the Hub{vanished}"
    if _any_is(causes, GatedRepoError):
        return f"{repo_id} is gated: ask for access on its page and pass a token"
    if _any_is(causes, RepositoryNotFoundError):
        return (
            f"{repo_id} is neither a local folder nor a repository on the Hub that you may read; check the name, or "
            "pass a token if it is private"
        )
    if status in (401, 403):
        return f"the Hub refuses this token for {repo_id}: check it with `hf auth whoami`, or `hf auth login` anew"
    if status is not None and status >= 500:
        return f"the Hub cannot serve {repo_id} now (it answered {status}): try again later"
    if _any_is(causes, OFFLINE):
        return (
            f"{repo_id} is not in the cache, and the Hub cannot be reached: connect and load it once, and check "
            "HF_HUB_OFFLINE and local_files_only"
        )
    if _any_is(causes, BROKEN):
        return f"the connection to the Hub broke while {repo_id} was {doing}: try again"
    if _any_is(causes, GARBLED) and doing != "read":
        return "the answer of the Hub cannot be understood: try again later"
    if _is_incomplete(causes):
        return f"a file of {repo_id} did not arrive whole: try again"
    if _any_is(causes, HFValidationError):
        return f"{repo_id!r} is neither a local folder nor a valid Hub id"
    if _any_is(causes, RemoteEntryNotFoundError):
        return f"{repo_id} has no config.json, so it is not a checkpoint"
    return None


def status_of(error: BaseException) -> int | None:
    """HTTP status of the Hub's response; None if the error does not come from a response."""
    if isinstance(error, (HfHubHTTPError, http.HTTPStatusError)):
        return error.response.status_code
    return None


def url_of(error: BaseException) -> str | None:
    """URL of the request that failed; None if the error does not come from a request."""
    if not isinstance(error, http.HTTPError):
        return None
    source: Any = error.response if status_of(error) else error
    try:
        return str(source.request.url)
    except RuntimeError:  # the error was raised before there was a request
        return None


def _status(causes: Sequence[BaseException]) -> int | None:
    return next((status for cause in causes if (status := status_of(cause))), None)


def _any_is(causes: Sequence[BaseException], kind: type | tuple[type, ...]) -> bool:
    return any(isinstance(cause, kind) for cause in causes)


def _is_incomplete(causes: Sequence[BaseException]) -> bool:
    return any(INCOMPLETE in str(cause) for cause in causes)
