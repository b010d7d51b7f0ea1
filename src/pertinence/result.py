"""`SearchResult`: what a search found, and the folder that it is saved to."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PertinenceError
from .evaluation import Evaluation
from .front import Front
from .modeling_pertinence import PertinenceForImageClassification
from .plots import plot_front


RECORD = "search_result.json"
PLOT = "front.png"


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        model: ready to run, with the whole front.
        evaluation: the front and its baselines on the report images.
        record: everything else, as stored in `search_result.json`.
    """

    model: PertinenceForImageClassification
    evaluation: Evaluation
    record: dict[str, Any]

    @property
    def front(self) -> Front:
        return self.evaluation.front

    def save(self, output_dir: str | os.PathLike, save_experts: bool = False) -> None:
        """Write a loadable model, `search_result.json` and the plot of the front; whole or not at all.

        Args:
            output_dir: a new or empty folder, or one that holds the result of the same search, which is replaced.
            save_experts: also copy each expert's own files.

        Raises:
            PertinenceError: the folder holds something else.
        """
        folder = Path(output_dir)
        check_output_dir(folder, self.record["settings"])
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            self.model.save_pretrained(temporary, save_experts=save_experts)
            record = {**self.record, "run": {**self.record["run"], "output_dir": str(folder)}}
            (temporary / RECORD).write_text(json.dumps(record, indent=1))
            plot_front(self.evaluation, temporary / PLOT)
            temporary.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_output_dir(output_dir: str | os.PathLike, settings: dict[str, Any]) -> None:
    """Refuse a folder that a result must not replace: one that holds anything but the result of the same search.

    Args:
        output_dir: where a result is to go.
        settings: those of the search, or some of them.

    Raises:
        PertinenceError: it is a file, or holds something else, or the result of another search.
    """
    folder = Path(output_dir)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PertinenceError(f"the output folder {folder} is a file: choose another --output-dir")
    if not any(folder.iterdir()):
        return
    if not (folder / RECORD).is_file():
        raise PertinenceError(
            f"the output folder {folder} holds something else: choose another --output-dir, or empty it"
        )
    stored = json.loads((folder / RECORD).read_text())["settings"]
    different = [key for key, value in settings.items() if stored.get(key) != value]
    if different:
        raise PertinenceError(
            f"the output folder {folder} holds the result of another search (its {different[0]} is "
            f"{stored.get(different[0])!r}, not {settings[different[0]]!r}): choose another --output-dir, or remove "
            "it"
        )
