"""Pushing a saved model to the Hub: model, image processor, card and what its search left beside it, in one commit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from transformers.utils import logging

from ..experts.entry import CONFIG, is_embedded
from ..experts.reference import ExpertReference, LoadOptions
from ..utils.downloads import chain, explain_hub, may_pass, with_retries
from ..utils.errors import PertinenceError, first_line
from ..utils.parsing import parse_json, read_mapping
from .bundle import LOCAL, MODEL_FILES, Bundle, check_no_paths, collect
from .configuration import PertinenceConfig
from .layout import SEARCH_DATA, SEARCH_FILES, is_same_front


logger = logging.get_logger(__name__)

CARD = "README.md"


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    save_experts: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    replace_card: bool = False,
    examples: bool = False,
    token: str | bool | None = None,
    expert_paths: Mapping[str, str] | None = None,
    commit_message: str = "Upload pertinence model",
    commit_description: str | None = None,
    tags: Sequence[str] = (),
) -> CommitInfo:
    """Push a saved model, or the result of a search, in one commit.

    Experts are neither loaded nor is their code run. Of a result its figures, baselines and hashes of seen images go
    along, its record without paths and host, and its settings with the names of local folders in place of their paths.

    Args:
        folder: where the model was saved.
        repo_id: of the model repository, which is created where there is none.
        save_experts: also push a copy of each expert's own files; copies in the folder always go along.
        private: whether a repository that is created is private; None: as the account has it.
        revision: branch to push to, which is created where there is none.
        create_pr: open a pull request.
        replace_card: whether a README.md that is there is replaced; else it is kept.
        examples: whether the figure of example images goes along: it shows images of the report split.
        token: of the Hub; None: that of `hf auth login`.
        expert_paths: where local experts have moved to, folder by expert name.
        commit_message, commit_description: of the commit.
        tags: further tags of the card.

    Raises:
        PertinenceError: there is no model, an expert is a local folder, or must not be copied, a file names a path of
            this machine, or the Hub refuses; nothing is pushed then.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as work:
        bundle = collect(Path(folder), Path(work), save_experts, examples, LoadOptions(token=token), expert_paths)
        look_up_experts(bundle, api)
        with _explained(repo_id):
            # All of this may be asked for twice, which some clients leave to us; a commit may not.
            repo_id = with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
            if revision is not None and not revision.startswith("refs/pr"):
                with_retries(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
            there = with_retries(lambda: api.list_repo_files(repo_id, revision=revision))
        if CARD in there and not replace_card:
            logger.warning(f"The README.md of {repo_id} is kept; replace_card=True (--replace-card) writes a new one.")
        else:
            bundle.files[CARD] = bundle.card(repo_id, tags).encode()
        check_no_paths(bundle.own_files, [Path(folder), Path(work)])
        operations: list[Any] = [CommitOperationAdd(path, content) for path, content in sorted(bundle.files.items())]
        is_another = bundle.record is not None or _holds_another(repo_id, there, bundle.config, revision, token)
        operations += [
            CommitOperationDelete(path) for path in there if path not in bundle.files and _is_ours(path, is_another)
        ]
        with _explained(repo_id, commits=True):
            return api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )


def check_pushable(repo_id: str, experts: Sequence[Any], save_experts: bool, token: str | bool | None = None) -> None:
    """Refuse what a push would refuse in the end, before a search: experts of this machine alone, and nobody's token.

    Args:
        repo_id: where the result is to go.
        experts: references, see `ExpertReference`.
        save_experts: whether copies of them are pushed.
        token: of the Hub.
    """
    local = [parsed.display_name for one in experts if (parsed := ExpertReference.parse(one)).is_folder]
    if local and not save_experts:
        raise PertinenceError(LOCAL.format(local[0]))
    with _explained(repo_id):
        HfApi(token=token).whoami()


def look_up_experts(bundle: Bundle, api: HfApi) -> None:
    """Ask the Hub of the experts there: whether they still exist, who may read them, and whether they bring code.

    Raises:
        PertinenceError: a pinned revision is gone, or what would be copied is gated.
    """
    for entry in bundle.config.entries:
        repo_id = entry.origin or entry.repo_id
        if is_embedded(repo_id):
            continue
        try:
            revision = entry.origin_revision or entry.revision
            found = with_retries(partial(api.model_info, repo_id, revision=revision))
        except Exception as error:  # whatever the Hub has against it
            reason = explain_hub(repo_id, revision, error) or first_line(error)
            raise PertinenceError(f"expert {entry.name!r}: {reason}") from error
        if found.gated and entry.is_embedded:
            raise PertinenceError(
                f"expert {entry.name!r} is gated: the owner of {repo_id} decides who gets it, so no copy of it is "
                "pushed; refer to it by its Hub id"
            )
        if found.gated or found.private:
            bundle.guarded[entry.name] = "gated" if found.gated else "private"
        if entry.name not in bundle.needs_code and any(
            file.rfilename.endswith(".py") and "/" not in file.rfilename for file in found.siblings or ()
        ):
            bundle.needs_code.append(entry.name)


def _holds_another(
    repo_id: str, there: Sequence[str], config: PertinenceConfig, revision: str | None, token: str | bool | None
) -> bool:
    """Whether a repository holds what a search left beside another model than this."""
    if not set(SEARCH_DATA) & set(there) or CONFIG not in there:
        return False
    with _explained(repo_id):
        path = with_retries(partial(hf_hub_download, repo_id, CONFIG, revision=revision, token=token))
    try:
        known = read_mapping(Path(path), parse_json) or {}
    except PertinenceError:  # damaged: this push mends it
        known = {}
    return not is_same_front(known.get("front"), config.front)


def _is_ours(path: str, is_another: bool) -> bool:
    """Whether a file of a repository is one that such a push writes, so that it goes where this one does not write it:
    what a search left only where this model is of another."""
    ours = (*MODEL_FILES, *SEARCH_FILES) if is_another else MODEL_FILES
    return path.startswith("experts/") or any(fnmatch(path, pattern) for pattern in ours)


@contextmanager
def _explained(repo_id: str, commits: bool = False) -> Iterator[None]:
    """Errors of the Hub against a push, or against its commit, in a sentence."""
    try:
        yield
    except Exception as error:  # of HTTP, of the network, of a token that is missing
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
            raise PertinenceError(
                f"you may not push to {repo_id}: log in with `hf auth login`, or pass a token that may write there"
            ) from error
        reason = explain_hub(repo_id, None, error, "pushed") or first_line(error)
        asked = [_asked(cause) for cause in chain(error)]
        if commits and may_pass(error) and (not any(asked) or any("/commit/" in url for url in asked)):
            raise PertinenceError(
                f"whether {repo_id} was pushed is not known, as no answer to the commit came ({reason}); it has "
                "all of it or nothing, and may be pushed again"
            ) from error
        raise PertinenceError(f"{repo_id} was not pushed: {reason}") from error


def _asked(error: BaseException) -> str:
    """The URL that an error of the network, or of the Hub, is about."""
    try:
        return str(error.request.url)
    except (AttributeError, RuntimeError):  # it has none
        return ""
