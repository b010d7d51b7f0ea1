"""The files of a saved model that run without torch: in its folder, or fetched from the Hub at one commit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.errors import PertinenceError, explain
from ..utils.hub_errors import check_place, explain_place
from .entry import CONFIG
from .heads import WEIGHTS


@dataclass(frozen=True)
class ModelFiles:
    """The folder of a model, which has its config and heads.

    Attributes:
        folder: the folder, in the cache if the model is from the Hub.
        repo_id: its Hub id; None: a folder.
        hub: arguments of `snapshot_download`, with the revision pinned.
    """

    folder: Path
    repo_id: str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / CONFIG

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def fetch(self, names: Sequence[str]) -> Path:
        """The folder, after files of these names were fetched, if it is in the cache."""
        return self.folder if self.repo_id is None else _download(self.repo_id, names, self.hub)


def open_model(model: str | os.PathLike[str], hub: Mapping[str, Any]) -> ModelFiles:
    """Find a model, and fetch its config and heads if it is on the Hub.

    Args:
        model: folder or Hub id.
        hub: arguments of `snapshot_download`.

    Raises:
        PertinenceError: it does not exist, or may not be read.
    """
    if Path(model).is_dir():
        return ModelFiles(Path(model))
    check_place(str(model))
    folder = _download(str(model), (CONFIG, WEIGHTS), hub)
    return ModelFiles(folder, str(model), {**hub, "revision": folder.name})  # the cache names a folder by its commit


def _download(repo_id: str, names: Sequence[str], hub: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download  # takes half a second, which a folder does not need

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(names), **hub))
    except Exception as error:  # from the Hub's client, or the network
        reason = explain_place(repo_id, hub.get("revision"), error)
        raise PertinenceError(reason or f"{repo_id} cannot be fetched ({explain(error)})") from error
