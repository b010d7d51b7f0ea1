"""Images where they lie: in files, parquet shards, tar archives or a data set; any range of rows is read without the
rows before it."""

from __future__ import annotations

import os
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..utils.errors import PertinenceError, explain, shown
from .columns import only_column


Row = tuple[str, Mapping[str, Any]]
"""The name of an image, and its content (`bytes`) or location (`path`)."""
Read = Callable[[int, int], Iterator[Row]]
"""Reads the rows from one number up to another."""

UNREADABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow knows by name, but does not decode by itself."""


class Rows(Protocol):
    """Images that lie in one place.

    Attributes:
        name: of the place.
        mode: Pillow mode that the column of the images requires, or None.
    """

    @property
    def name(self) -> str: ...

    @property
    def mode(self) -> str | None: ...

    def __len__(self) -> int: ...

    def identity(self) -> Iterator[tuple[Any, ...]]:
        """What tells these images from others, without reading them."""

    def open(self) -> Read:
        """A function that reads rows, fastest in rising order."""


@dataclass(frozen=True)
class FileRows:
    """Image files.

    Attributes:
        paths: of the files.
    """

    paths: tuple[str, ...]
    mode: str | None = None

    @property
    def name(self) -> str:
        return self.paths[0]

    def __len__(self) -> int:
        return len(self.paths)

    def identity(self) -> Iterator[tuple[Any, ...]]:
        return ((as_text(path), *_stamp(path)) for path in self.paths)

    def open(self) -> Read:
        return lambda start, stop: ((as_text(path), {"path": path}) for path in self.paths[start:stop])


@dataclass(frozen=True)
class TarRows:
    """The images of a tar archive, as WebDataset writes them.

    The members are found by their headers, and read from where they lie. The builder of `datasets` for such archives
    would first copy all of them into its cache, or stream them without a way to begin in the middle.
    """

    path: str
    count: int
    mode: str | None = None

    @classmethod
    def of(cls, path: str) -> TarRows:
        """Count the images of an archive; raises `PertinenceError` if it is damaged or has none."""
        count = len(_members(path))
        if count == 0:
            raise PertinenceError(f"the archive {path} holds no images, by the suffixes of its members")
        return cls(path, count)

    @property
    def name(self) -> str:
        return as_text(self.path)

    def __len__(self) -> int:
        return self.count

    def identity(self) -> Iterator[tuple[Any, ...]]:
        yield self.name, *_stamp(self.path), self.count

    def open(self) -> Read:
        members = _members(self.path)

        def read(start: int, stop: int) -> Iterator[Row]:
            with open(self.path, "rb") as file:
                for name, offset, size in members[start:stop]:
                    file.seek(offset)
                    yield f"{self.name}:{name}", {"bytes": file.read(size)}

        return read


@dataclass(frozen=True)
class ParquetRows:
    """The images of a parquet file.

    Attributes:
        path: of the file.
        column: name of the column of images: encoded, or locations, of which relative ones start at the folder of the
            file.
        groups: number of rows in each row group.
        mode: see `Rows`.
    """

    path: str
    column: str
    groups: tuple[int, ...]
    mode: str | None = None

    @classmethod
    def of(cls, path: str, column: str | None) -> ParquetRows:
        """Read what the end of a file says of it.

        Raises:
            PertinenceError: it is damaged, or has no such column, or not exactly one that holds images.
        """
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise PertinenceError(
                f"{path} cannot be read as parquet ({explain(error)}): fetch or write it anew"
            ) from error
        schema = file.schema_arrow
        if column is not None and column not in schema.names:
            raise PertinenceError(f"{path} has no column {column!r}; its columns are {', '.join(schema.names)}")
        if column is None:
            column = only_column([one.name for one in schema if _holds_images(one.type)], schema.names, "image", path)
        elif not _holds_images(schema.field(column).type) and not _is_text(schema.field(column).type):
            raise PertinenceError(f"column {column!r} of {path} holds no images, but {schema.field(column).type}")
        counts = tuple(file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups))
        return cls(path, column, counts, _mode(schema, column))

    @property
    def name(self) -> str:
        return as_text(self.path)

    def __len__(self) -> int:
        return sum(self.groups)

    def identity(self) -> Iterator[tuple[Any, ...]]:
        yield self.name, *_stamp(self.path), self.column, len(self)

    def open(self) -> Read:
        return _ParquetReader(self).read


class _ParquetReader:
    """Reads a parquet file; it stays in a row group for the next call, and decodes no more of it than it must."""

    BATCH = 16
    """Images that are read at once."""

    def __init__(self, rows: ParquetRows):
        self.rows, self.folder = rows, Path(rows.path).parent
        self.file = pq.ParquetFile(rows.path, pre_buffer=False)
        self.starts = [0, *accumulate(rows.groups)]
        self.group, self.position, self.values = -1, 0, iter(())

    def read(self, start: int, stop: int) -> Iterator[Row]:
        for row in range(start, stop):
            group = bisect_right(self.starts, row) - 1
            if group != self.group or row < self.position:
                self.group, self.position, self.values = group, self.starts[group], self._values(group)
            while self.position < row:
                self.position += 1
                next(self.values)
            self.position += 1
            yield f"{self.rows.name}:{row}", self._located(next(self.values).as_py())

    def _values(self, group: int) -> Iterator[Any]:
        batches = self.file.iter_batches(self.BATCH, [group], [self.rows.column], use_threads=False)
        return (value for batch in batches for value in batch.column(0))

    def _located(self, value: Any) -> Mapping[str, Any]:
        if isinstance(value, bytes):
            return {"bytes": value}
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
        if content is not None or path is None or "://" in path:
            return {"bytes": content, "path": path}
        return {"path": str(self.folder / path)}


@dataclass(frozen=True)
class DatasetRows:
    """The images of a data set of `datasets`, which are encoded.

    Attributes:
        images: the split, whose column of images is not decoded.
        column: name of this column.
        name, mode: see `Rows`.
    """

    images: datasets.Dataset = field(repr=False)
    column: str
    name: str
    mode: str | None

    def __len__(self) -> int:
        return len(self.images)

    def identity(self) -> Iterator[tuple[Any, ...]]:
        yield self.name, self.images._fingerprint, self.column, len(self)

    def open(self) -> Read:
        def read(start: int, stop: int) -> Iterator[Row]:
            for row in range(start, stop):
                yield f"{self.name}:{row}", self.images[row][self.column] or {}

        return read


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the formats that Pillow decodes."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in UNREADABLE)


def as_text(path: str) -> str:
    """A path as text that can be written to any file: bytes that are no UTF-8 are shown as escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of the last change of a file; decoding reports one that is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _members(path: str) -> list[tuple[str, int, int]]:
    """Name, offset and size of every image of a tar archive, in order."""
    found = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse() and Path(member.name).suffix.lower() in image_suffixes():
                    found.append((as_text(member.name), member.offset_data, member.size))
                archive.members = []  # type: ignore[attr-defined]  # which would keep every header
    except (OSError, tarfile.TarError, ValueError) as error:
        raise PertinenceError(
            f"{shown(path, 300)} cannot be read as a tar archive ({explain(error)}): fetch it anew"
        ) from error
    return found


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = {kind.field(index).name for index in range(kind.num_fields)}
        return "bytes" in names and names <= {"bytes", "path"}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _mode(schema: pa.Schema, column: str) -> str | None:
    """The Pillow mode that a column requires, if `datasets` wrote the file."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    try:
        return getattr(datasets.Features.from_arrow_schema(schema).get(column), "mode", None)
    except Exception as error:  # `datasets` may raise anything
        raise PertinenceError(f"the column types of a parquet file cannot be read ({explain(error)})") from error
