"""Settings shared by the commands that take a searched model."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..utils.errors import PertinenceError
from ..utils.settings import Settings, setting


MODEL = "Folder or Hub id of a searched model."


@dataclass
class ModelArguments(Settings):
    """How to find a saved model and its experts."""

    expert_paths: str | None = setting(
        None, 'New folders of local experts that have moved, as JSON: {"name": "folder"}.', group="experts"
    )
    revision: str | None = setting(None, "Branch, tag or commit on the Hub.", group="model")

    @property
    def expert_folders(self) -> dict[str, str] | None:
        """New folders of local experts that have moved, by name; raises `PertinenceError` if the JSON is malformed."""
        if self.expert_paths is None:
            return None
        try:
            mapping = json.loads(self.expert_paths)
        except json.JSONDecodeError:
            mapping = None
        if not isinstance(mapping, dict):
            raise PertinenceError(
                f'--expert-paths must be JSON like {{"resnet8": "new/folder"}}, got {self.expert_paths!r}'
            )
        return mapping
