"""Errors of the Hub: which may pass, and what is said of them."""

from __future__ import annotations

import json
import re
import socket

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pertinence import PertinenceError
from pertinence.utils.hub_errors import (
    DamagedDownload,
    check_place,
    explain_hub,
    explain_place,
    http,
    may_pass,
    status_of,
    url_of,
)


URL = "https://huggingface.co/api/models/someone/model"


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """An error that the Hub's client raises for an answer."""
    return kind("refused", response=http.Response(status, request=http.Request("GET", URL)))


def wrapped(error: Exception) -> Exception:
    """As transformers raises it: a general error, which the Hub's caused."""
    try:
        raise OSError("cannot load") from error
    except OSError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "passes", "words"),
    [
        (answer(HfHubHTTPError, 503), True, "cannot serve someone/model now .it answered 503."),
        (answer(HfHubHTTPError, 403), False, "refuses this token"),
        (answer(HfHubHTTPError, 418), False, None),
        (answer(GatedRepoError, 403), False, "is gated"),
        (answer(RepositoryNotFoundError, 404), False, "neither a local folder nor a repository"),
        (answer(RevisionNotFoundError, 404), False, "has no revision 'v1'"),
        (http.ConnectError("refused"), True, "the connection to the Hub broke"),
        (http.ReadTimeout("late"), True, "the connection to the Hub broke"),
        (http.RemoteProtocolError("cut off"), True, "the connection to the Hub broke"),
        (http.UnsupportedProtocol("ftp"), False, None),
        (LocalEntryNotFoundError("not there"), False, "is not in the cache, and the Hub cannot be reached"),
        (OfflineModeIsEnabled("offline"), False, "is not in the cache, and the Hub cannot be reached"),
        (OSError("Consistency check failed: file should be of size 5"), True, "did not arrive whole"),
        (ValueError("anything else"), False, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_may_pass_and_what_is_said(error, passes, words):
    for one in (error, wrapped(error)):
        assert may_pass(one) is passes
        reason = explain_hub("someone/model", "v1", one)
        if words is None:
            assert reason is None
        else:
            assert re.search(words, reason)


def test_what_the_hub_could_not_tell_may_have_been_meant_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unanswered, answered = http.ConnectError("refused"), answer(GatedRepoError, 403)
    words = "there is no folder someone/model here, so it was taken as a repository on the Hub: the connection"
    assert explain_place("someone/model", None, unanswered).startswith(words)
    assert explain_place("someone/model", None, LocalEntryNotFoundError("none")).startswith(words[:-14])
    assert explain_place("someone/model", "v1", unanswered).startswith("the connection to the Hub broke")
    assert explain_place("someone/model", None, answered).startswith("someone/model is gated")
    assert explain_place("someone/model", None, ValueError("anything else")) is None


@pytest.mark.parametrize("place", ["./model", "../model", "a/b/c", "/a/b", "~/model", "a/b/", "model\\b"])
def test_what_no_repository_can_be_called_is_refused_at_once(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for good in ("someone/model", "model", str(tmp_path), "../" + tmp_path.name):
        check_place(good)
    with pytest.raises(PertinenceError, match="is a file, expected a folder or a Hub id"):
        check_place("file")
    with pytest.raises(PertinenceError, match="there is no folder .* here, and no repository on the Hub can"):
        check_place(place)


def test_what_is_damaged_may_come_whole_the_next_time():
    assert may_pass(DamagedDownload("other bytes"))
    with pytest.raises(json.JSONDecodeError) as garbled:
        json.loads("{")
    assert may_pass(garbled.value)


def test_where_nothing_listens_the_url_is_known():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(http.ConnectError) as refused:
            HfApi(endpoint=endpoint).model_info("someone/model")
    assert may_pass(refused.value)
    assert url_of(refused.value).startswith(f"{endpoint}/api/models/someone/model")
    assert status_of(refused.value) is None


def test_status_and_url_of_an_answer():
    error = answer(HfHubHTTPError, 502)
    assert (status_of(error), url_of(error)) == (502, URL)
    assert status_of(ValueError()) is url_of(ValueError()) is url_of(http.ConnectError("no request")) is None
