"""The exported graphs of a saved model: found in its folder or on the Hub, and copied when the model is saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..experts.backends.base import made_by
from ..experts.checkpoint_files import check_contained
from ..experts.expert import Expert
from ..experts.reference import LoadOptions
from ..runtime.entry import ExpertEntry
from ..runtime.exports import FOLDER, Export
from ..utils.downloads import fetch


@dataclass(frozen=True)
class ExportedFiles:
    """Where the exported graphs of a model are.

    Attributes:
        source: folder or Hub id of the model.
        revision: commit on the Hub.
        subfolder: subfolder of the model in `source`.
        options: how files are downloaded from the Hub.
        made: the files of graphs that were made for a model that is not saved yet, by their place in its folder.
    """

    source: str | None
    revision: str | None = None
    subfolder: str = ""
    options: LoadOptions = field(default_factory=LoadOptions, repr=False)
    made: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of_pool(cls, experts: Sequence[Expert], stem: Expert | None) -> tuple[list[ExpertEntry], ExportedFiles]:
        """The entries of experts that become a model, that of a stem last, with the graphs that were made for them."""
        entries, made = [], {}
        homes = [*map(str, range(len(experts))), *([] if stem is None else ["stem"])]
        for home, expert in zip(homes, [*experts, *filter(None, [stem])], strict=True):
            exports = []
            for export, path in made_by(expert.network):
                file = f"experts/{home}/{FOLDER}/{Path(export.file).name}"
                exports.append(replace(export, file=file))
                made[file] = path
            entries.append(expert.entry.replace(exports=tuple(exports)))
        return entries, cls(None, made=made)

    def find(self, export: Export) -> Path:
        """The path of a graph, which is downloaded if necessary.

        Raises:
            PertinenceError: it is a link that leads out of the folder, or cannot be downloaded.
        """
        if export.file in self.made:
            return self.made[export.file]
        assert self.source is not None  # every other graph is in the folder of a saved model
        root, file = Path(self.source), (Path(self.subfolder) / export.file).as_posix()
        if not root.is_dir():
            root = fetch(self.source, self.revision, [file], **self.options.hub)
        check_contained([root / file], root)
        return root / file

    def copy(self, entries: Iterable[ExpertEntry], folder: Path) -> None:
        """Copy all graphs that entries list into another folder, after their hashes were checked."""
        for export in (export for entry in entries for export in entry.exports):
            content = export.read(self.find(export))
            (folder / export.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / export.file).write_bytes(content)
