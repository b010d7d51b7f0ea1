"""Settings of a search as a file beside its result, which `--config` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..experts.reference import ExpertReference
from ..hub.configuration import PertinenceConfig
from ..hub.layout import NOT_STORED
from ..utils.settings import Settings
from ..utils.validation import split_revision


PATHS = ("dataset", "report_dataset", "predictions", "costs", "output_dir", "cache_dir")
"""Settings that may be paths."""


def resolved_settings(*arguments: Settings) -> dict[str, Any]:
    """All settings of a command in one mapping for `--config`, without secrets and one-time actions."""
    return {
        setting.name: getattr(part, setting.name)
        for part in arguments
        for setting in part.used()
        if setting.name not in NOT_STORED and getattr(part, setting.name) is not None
    }


def anchored(settings: dict[str, Any], config: PertinenceConfig | None) -> dict[str, Any]:
    """Settings that repeat a search from another folder and at another time: paths are absolute, and experts from the
    Hub are pinned to the loaded commit.

    Args:
        settings: see `resolved_settings`.
        config: config of the resulting model; None if there is none.
    """
    entries = [] if config is None else config.entries

    def at_commit(reference: str | dict[str, Any]) -> str | dict[str, Any]:
        parsed = ExpertReference.parse(reference)
        commits = {entry.revision for entry in entries if entry.repo_id == parsed.repo_id}
        # If several commits of one repository were loaded, the user named each of them.
        revision = commits.pop() if len(commits) == 1 and not parsed.is_folder else parsed.revision
        if isinstance(reference, dict):
            return {**reference, "repo_id": parsed.repo_id} | ({"revision": revision} if revision else {})
        return pinned(str(parsed.repo_id), revision)

    anchored = {
        name: str(Path(value).resolve()) if name in PATHS and Path(value).exists() else value
        for name, value in settings.items()
    }
    if settings.get("experts"):
        anchored["experts"] = [at_commit(reference) for reference in settings["experts"]]
    if settings.get("stem"):
        anchored["stem"] = at_commit(settings["stem"])
    return anchored


def pinned(repo_id: str, commit: str | None) -> str:
    """A reference to a repository, pinned to the loaded commit; unchanged if the commit is unknown."""
    return repo_id if commit is None else f"{split_revision(repo_id)[0]}@{commit}"
