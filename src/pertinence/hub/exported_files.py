"""The exported graphs of a saved model: found in its folder or on the Hub, and copied when the model is saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..experts.checkpoint_files import check_contained
from ..runtime.entry import ExpertEntry
from ..runtime.exports import Export
from ..utils.downloads import fetch


@dataclass(frozen=True)
class ExportedFiles:
    """Where the exported graphs of a model are.

    Attributes:
        source: folder or Hub id of the model.
        revision: commit on the Hub.
        subfolder: subfolder of the model in `source`.
        options: how files are downloaded from the Hub.
    """

    source: str
    revision: str | None = None
    subfolder: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    def find(self, export: Export) -> Path:
        """The path of a graph, which is downloaded if necessary.

        Raises:
            PertinenceError: it is a link that leads out of the folder, or cannot be downloaded.
        """
        root, file = Path(self.source), (Path(self.subfolder) / export.file).as_posix()
        if not root.is_dir():
            root = fetch(self.source, self.revision, [file], **self.options)
        check_contained([root / file], root)
        return root / file

    def copy(self, entries: Iterable[ExpertEntry], folder: Path) -> None:
        """Copy all graphs that entries list into another folder, after their hashes were checked."""
        for export in (export for entry in entries for export in entry.exports):
            content = export.read(self.find(export))
            (folder / export.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / export.file).write_bytes(content)
