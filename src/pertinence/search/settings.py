"""Settings of a command as a file: written beside a result, and read by `--config`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..experts.reference import ExpertReference
from ..hub.configuration import PertinenceConfig
from ..hub.layout import NOT_STORED
from ..utils.errors import PertinenceError, shown
from ..utils.parsing import parse_yaml, read_text
from ..utils.validation import is_name, split_revision


PATHS = ("dataset", "report_dataset", "predictions", "costs", "output_dir", "cache_dir")
"""Settings that may be paths."""
SHOWN_SETTINGS = 20


def resolved_settings(*arguments: Any) -> dict[str, Any]:
    """All settings of a command in one mapping, as `--config` takes them; without secrets, and what is done once."""
    return {
        setting.name: getattr(part, setting.name)
        for part in arguments
        for setting in fields(part)
        if setting.name not in NOT_STORED and getattr(part, setting.name) is not None
    }


def anchored(settings: dict[str, Any], config: PertinenceConfig | None) -> dict[str, Any]:
    """Settings of a search that mean the same in another folder and tomorrow: paths are absolute, experts from the Hub
    at the commit that was loaded.

    Args:
        settings: see `resolved_settings`.
        config: of the model that was found; None without one.
    """
    entries = [] if config is None else config.entries

    def at_commit(reference: str | dict[str, Any]) -> str | dict[str, Any]:
        parsed = ExpertReference.parse(reference)
        commits = {entry.revision for entry in entries if entry.repo_id == parsed.repo_id}
        # Of several commits of one repository each was asked for by its own name.
        revision = commits.pop() if len(commits) == 1 and not parsed.is_folder else parsed.revision
        if isinstance(reference, dict):
            return {**reference, "repo_id": parsed.repo_id} | ({"revision": revision} if revision else {})
        return pinned(parsed.repo_id, revision)

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
    """A repository as it is named in settings, at the commit that was loaded; as it was where none is known."""
    return repo_id if commit is None else f"{split_revision(repo_id)[0]}@{commit}"


def read_config(path: str, known: set[str]) -> dict[str, Any]:
    """Settings from a YAML file; raises `PertinenceError` where it holds anything else."""
    try:
        values = parse_yaml(read_text(Path(path)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise PertinenceError(f"the settings in {path} cannot be read: {reason}") from error
    if not isinstance(values, dict):
        raise PertinenceError(f"{path} must hold settings, one `name: value` each")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(set(values) - known):
        named = ", ".join(name if is_name(name) else shown(name) for name in unknown[:SHOWN_SETTINGS])
        raise PertinenceError(f"{path} has unknown settings: {named}; see `pertinence search --help`")
    return values
