"""Pushing a saved model to the Hub: model, image processor, card, and the files of its search, in one commit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers.utils import logging

from ..experts.checkpoint_files import SETTINGS
from ..experts.reference import ExpertReference, LoadOptions
from ..experts.remote_code import needs_code
from ..runtime.entry import CONFIG, is_embedded
from ..utils.downloads import fetch, fetch_file, with_retries
from ..utils.errors import PertinenceError, causes_of, first_line
from ..utils.hub_errors import explain_hub, may_pass, status_of, url_of
from ..utils.json_files import parse_json
from ..utils.parsing import read_mapping
from .bundle import LOCAL, MODEL_FILES, Bundle, collect
from .configuration import PertinenceConfig
from .expert_files import naming
from .layout import SEARCH_DATA, SEARCH_FILES, is_same_front
from .local_paths import check_no_paths


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

    Experts are not loaded, and their code does not run. The push of a result includes its figures, baselines and
    hashes of seen images, its record without paths and host, and its settings with names in place of local paths.

    Args:
        folder: folder that the model was saved to.
        repo_id: id of the model repository; it is created if it does not exist.
        save_experts: also push a copy of each expert's own files; copies in the folder are always pushed.
        private: whether a newly created repository is private; None: the default of the account.
        revision: branch to push to; it is created if it does not exist.
        create_pr: open a pull request.
        replace_card: whether to replace an existing README.md; by default it is kept.
        examples: whether to push the figure with example images of the report split.
        token: Hub token; None: that of `hf auth login`.
        expert_paths: new folders of local experts that have moved, by expert name.
        commit_message, commit_description: message and description of the commit.
        tags: further tags of the card.

    Raises:
        PertinenceError: there is no model, an expert is a local folder or must not be copied, a file names a path of
            this machine, or the Hub refuses the push; nothing is pushed then.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as work:
        bundle = collect(Path(folder), Path(work), save_experts, examples, LoadOptions(token=token), expert_paths)
        look_up_experts(bundle, api)
        repo_id, there = _open_repository(api, repo_id, private, revision)
        if CARD in there and not replace_card:
            logger.warning(f"The README.md of {repo_id} is kept; replace_card=True (--replace-card) writes a new one.")
        else:
            bundle.files[CARD] = bundle.card(repo_id, tags).encode()
        check_no_paths(bundle.own_files, [Path(folder), Path(work)])
        is_another = bundle.record is not None or _holds_another(repo_id, there, bundle.config, revision, token)
        with _explained(repo_id, commits=True):
            return api.create_commit(
                repo_id,
                _operations(bundle.files, there, is_another),
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )


def _open_repository(
    api: HfApi, repo_id: str, private: bool | None, revision: str | None
) -> tuple[str, Sequence[str]]:
    """Create a repository and a branch if they do not exist; returns the full id and the paths of its files."""
    with _explained(repo_id):
        # Some versions of the client do not retry these requests. They may be sent twice, unlike a commit.
        repo_id = with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            with_retries(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        return repo_id, with_retries(lambda: api.list_repo_files(repo_id, revision=revision))


def _operations(
    files: Mapping[str, Path | bytes], there: Sequence[str], is_another: bool
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """The operations of a commit: add the files, and delete obsolete ones of an earlier push.

    Args:
        files: content, or the file that holds it, by path in the repository.
        there: paths of the files in the repository.
        is_another: whether the files of a search in the repository belong to another model.
    """
    added = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
    obsolete = [path for path in there if path not in files and _is_ours(path, is_another)]
    return [*added, *map(CommitOperationDelete, obsolete)]


def check_pushable(repo_id: str, experts: Sequence[Any], save_experts: bool, token: str | bool | None = None) -> None:
    """Refuse, before a search, what the push after it would refuse: local experts without copies, a missing token.

    Args:
        repo_id: repository that the result will be pushed to.
        experts: references, see `ExpertReference`.
        save_experts: whether copies of the experts are pushed.
        token: Hub token.
    """
    local = [parsed.display_name for one in experts if (parsed := ExpertReference.parse(one)).is_folder]
    if local and not save_experts:
        raise PertinenceError(LOCAL.format(local[0]))
    with _explained(repo_id):
        HfApi(token=token).whoami()


def look_up_experts(bundle: Bundle, api: HfApi) -> None:
    """Ask the Hub whether its experts still exist, are gated or private, and need code of their own.

    Raises:
        PertinenceError: a pinned revision does not exist any more, or an expert to be copied is gated.
    """
    for entry in bundle.config.entries:
        repo_id = entry.origin or entry.repo_id
        if repo_id is None or is_embedded(repo_id):
            continue
        revision = entry.origin_revision or entry.revision
        with naming(entry.name, repo_id, revision):
            found = with_retries(partial(api.model_info, repo_id, revision=revision))
            # Copies were looked at when they were collected.
            if not entry.is_embedded and (entry.code or _names_code(found, api.token)):
                bundle.needs_code.append(entry.name)
        if found.gated and entry.is_embedded:
            raise PertinenceError(
                f"expert {entry.name!r} is gated: the owner of {repo_id} decides who gets it, so no copy of it is "
                "pushed; refer to it by its Hub id"
            )
        if found.gated or found.private:
            bundle.guarded[entry.name] = "gated" if found.gated else "private"


def _names_code(found: ModelInfo, token: str | bool | None) -> bool:
    """Whether the settings of an expert on the Hub name code; they are read only where there is any."""
    if not any(file.rfilename.endswith(".py") for file in found.siblings or ()):
        return False
    return needs_code(fetch(found.id, found.sha, SETTINGS, token=token))


def _holds_another(
    repo_id: str, there: Sequence[str], config: PertinenceConfig, revision: str | None, token: str | bool | None
) -> bool:
    """Whether a repository contains files of the search of another model."""
    if not set(SEARCH_DATA) & set(there) or CONFIG not in there:
        return False
    with _explained(repo_id):
        path = fetch_file(repo_id, CONFIG, revision=revision, token=token)
    try:
        known = read_mapping(path, parse_json) or {}
    except PertinenceError:  # the config there is damaged, and this push replaces it
        known = {}
    return not is_same_front(known.get("front"), config.front)


def _is_ours(path: str, is_another: bool) -> bool:
    """Whether pushes write files of this name, so that a file that this push does not write is obsolete.

    Args:
        path: path of a file in the repository.
        is_another: whether the files of a search in the repository belong to another model; otherwise they stay.
    """
    ours = (*MODEL_FILES, *SEARCH_FILES) if is_another else MODEL_FILES
    return path.startswith("experts/") or any(fnmatch(path, pattern) for pattern in ours)


@contextmanager
def _explained(repo_id: str, commits: bool = False) -> Iterator[None]:
    """Explain errors of the Hub in one sentence.

    Args:
        repo_id: repository that is pushed to.
        commits: whether the request is the commit itself, which may have succeeded even if its response was lost.
    """
    try:
        yield
    except Exception as error:  # the Hub's client raises errors of HTTP, of the network, and its own
        if status_of(error) in (401, 403) or isinstance(error, LocalTokenNotFoundError):
            raise PertinenceError(
                f"you may not push to {repo_id}: log in with `hf auth login`, or pass a token that may write there"
            ) from error
        reason = explain_hub(repo_id, None, error, "pushed") or first_line(error)
        asked = [url for cause in causes_of(error) if (url := url_of(cause))]
        if commits and may_pass(error) and (not asked or any("/commit/" in url for url in asked)):
            raise PertinenceError(
                f"whether {repo_id} was pushed is not known, as no answer to the commit came ({reason}); it has "
                "either all files or none, and you may push again"
            ) from error
        raise PertinenceError(f"{repo_id} was not pushed: {reason}") from error
