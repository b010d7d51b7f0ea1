"""Settings that the commands for a searched model share."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..utils.errors import PertinenceError
from ..utils.settings import Settings, setting


MODEL = "Folder or Hub id of a searched model."


@dataclass
class ModelArguments(Settings):
    """How a saved model is found."""

    expert_paths: str | None = setting(
        None, 'Where local experts have moved to, as JSON: {"name": "folder"}.', group="experts"
    )
    revision: str | None = setting(None, "Branch, tag or commit on the Hub.", group="model")

    @property
    def expert_folders(self) -> dict[str, str] | None:
        """Where local experts have moved to: folders by name; raises `PertinenceError` where it is no such JSON."""
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
