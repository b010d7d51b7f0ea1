"""`Origin`: what an expert is made of, a loaded checkpoint or an exported graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..data.labels import Labels
from .reference import LoadOptions


class Origin(Protocol):
    """What an expert is made of.

    Attributes:
        labels: the names of its outputs, by index.
        revision: commit or content hash of its files.
        folder: the folder of its files; None for a model that was given loaded.
        code: the folders of its code in other repositories, see `fetch_code`.
        options: how it is loaded.
    """

    @property
    def labels(self) -> Labels: ...

    @property
    def revision(self) -> str: ...

    @property
    def folder(self) -> Path | None: ...

    @property
    def code(self) -> Mapping[str, Path]: ...

    @property
    def options(self) -> LoadOptions: ...
