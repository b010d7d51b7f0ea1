"""A long output in parts, so that a run that was killed goes on, and the record of the run beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..utils.errors import MALFORMED, PertinenceError, shown
from ..utils.io import replaced
from ..utils.locks import LOCK, locked
from .answers import large_tables, writer_of


MANIFEST = "manifest.json"
ADVICE = "free some space, or choose another --output; the same command goes on from where it stopped"

Run = dict[str, Any]
"""What makes the rows of an output: the model, the images and the settings, as plain values."""


@dataclass(frozen=True)
class Parts:
    """The parts of one output.

    Attributes:
        output: the file that they will form.
        count: number of all rows.
        size: rows of a part; the last one may have fewer.
    """

    output: Path
    count: int
    size: int

    @property
    def folder(self) -> Path:
        """Where the parts are until they are joined."""
        return self.output.with_name(f"{self.output.name}.parts")

    @property
    def record(self) -> Path:
        """The file beside a finished output that says what made it."""
        return self.output.with_name(f"{self.output.name}.run.json")

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def rows(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.size, min((part + 1) * self.size, self.count))

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:05}.parquet"

    def unfinished(self) -> list[int]:
        """The parts that are not there, or damaged."""
        return [part for part in range(len(self)) if not self._is_whole(part)]

    def write(self, part: int, table: pa.Table) -> None:
        """Write a part completely or not at all."""
        with replaced(self.path(part), ADVICE) as temporary:
            pq.write_table(table, temporary)

    @contextmanager
    def opened(self, run: Run, resume: bool) -> Iterator[None]:
        """Lock the folder of the parts, and keep in it the parts of this very run.

        Args:
            run: the run that makes the output.
            resume: whether finished parts are kept.

        Raises:
            PertinenceError: it holds the parts of another run, or another process is at work.
        """
        with self._locked():
            manifest = self.folder / MANIFEST
            if manifest.is_file():
                self._check(_read(manifest), run, "the unfinished output")
            elif self.output.exists() and not self.record.is_file():
                raise PertinenceError(
                    f"{self.output} exists, and not from such a run: choose another --output, or remove it"
                )
            if not (resume and manifest.is_file()):
                for path in self.folder.glob("part-*.parquet"):
                    path.unlink()
            with replaced(manifest, ADVICE) as temporary:
                temporary.write_text(json.dumps(run, indent=1))
            yield

    def finished(self, run: Run) -> dict[str, Any] | None:
        """What the record of a finished output says of its result; None if the output is not finished.

        Raises:
            PertinenceError: the output is that of another run.
        """
        if not (self.output.is_file() and self.record.is_file()):
            return None
        record = _read(self.record)
        self._check(record.get("run"), run, "the output")
        if record.get("bytes") != self.output.stat().st_size:
            raise PertinenceError(
                f"{self.output} was changed after it was written: choose another --output, or remove it"
            )
        return record["result"]

    def join(self, run: Run, summarise: Callable[[pa.Table], None], result: Callable[[], dict[str, Any]]) -> None:
        """Join all parts to the output, and write its record.

        Args:
            run: the run that made them.
            summarise: called with the rows, in order.
            result: called at the end; what the record keeps.
        """
        with replaced(self.output, ADVICE) as temporary:
            with writer_of(temporary, self.output.suffix) as writer:
                for table in large_tables(map(self.path, range(len(self)))):
                    writer.write(table)
                    summarise(table)
            size = temporary.stat().st_size
        values = {"run": run, "result": result(), "bytes": size}
        with replaced(self.record, ADVICE) as temporary:
            temporary.write_text(json.dumps(values, indent=1))

    def remove(self) -> None:
        """Remove what a run that was killed at its very end left behind."""
        if self.folder.is_dir():
            with self._locked():
                self.clear()

    def clear(self) -> None:
        """Remove the parts; the lock stays until it is released."""
        (self.folder / MANIFEST).unlink(missing_ok=True)  # first: what is left then belongs to nothing
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)

    def _locked(self) -> AbstractContextManager[None]:
        busy = f"another process is writing {self.output}: wait for its end, or choose another --output"
        return locked(self.folder, busy, ADVICE)

    def _is_whole(self, part: int) -> bool:
        try:
            return pq.read_metadata(self.path(part)).num_rows == len(self.rows(part))
        except (OSError, pa.ArrowException):
            return False

    def _check(self, stored: Any, run: Run, what: str) -> None:
        differences = _differences(stored, json.loads(json.dumps(run)))
        if differences:
            raise PertinenceError(
                f"{what} {self.output} is that of another run ({'; '.join(differences)}): choose another --output, or "
                f"remove it{f' with {self.folder.name}' if what != 'the output' else ''}"
            )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, *MALFORMED) as error:
        raise PertinenceError(
            f"{path} is damaged: remove it with what it belongs to, or choose another --output"
        ) from error


def _differences(stored: Any, run: Run) -> list[str]:
    """One clause for each part of a run that is another one."""
    if not isinstance(stored, dict):
        return ["its record is damaged"]
    clauses = {"images": "it has other images, or they were changed", "model": "its model is another one"}
    changed = [key for key in run if stored.get(key) != run[key]]
    return [
        clauses.get(key, f"its {key.replace('_', ' ')} is {shown(stored.get(key))}, not {shown(run[key])}")
        for key in changed
    ]
