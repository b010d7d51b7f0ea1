"""Images to classify: files, folders, patterns, shards, data sets, in the order in which they were named."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
import torch

from ..utils.errors import PertinenceError, explain, first_line, shown
from ..utils.hub_errors import check_place
from ..utils.validation import split_revision
from .arguments import DataArguments, InputArguments
from .columns import find_column
from .decoding import decode_image, open_row
from .loading import load_split
from .rows import DatasetRows, FileRows, ParquetRows, Read, Rows, TarRows, image_suffixes


PARQUET, TAR = (".parquet", ".pq"), (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
STANDARD_INPUT = "-"
ADDRESS = re.compile(r" object at 0x[0-9a-f]+")
"""What differs from run to run in a message of Pillow."""

Input: TypeAlias = str | os.PathLike[str] | datasets.Dataset
"""A file, a folder, a pattern, a shard, a Hub id (or id@revision) of a data set, "-", or a data set."""
Decoded = tuple[str, torch.Tensor | PertinenceError]
"""The name of an image, and the image, uint8 (3, H, W), or the error of one that cannot be decoded."""


class InputImages(torch.utils.data.Dataset[Decoded]):
    """Images that are decoded when they are read, in ranges of rows; their names and errors come with them.

    Args:
        parts: where the images lie, in order.
        limit: number of images; None: all.
    """

    def __init__(self, parts: Sequence[Rows], limit: int | None = None):
        self.parts = list(parts)
        self._starts = [0, *accumulate(map(len, self.parts))]
        self._count = min(self._starts[-1], limit if limit is not None else self._starts[-1])
        self._opened: tuple[int, Read] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Decoded:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Decoded]:
        """The images of consecutive rows."""
        return [_decode(*row) for row in self._rows(rows[0], rows[-1] + 1)]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}  # what is open belongs to one process

    def fingerprint(self) -> str:
        """A hash of the names, sizes and times of all files, which reads none of them."""
        digest = hashlib.sha256(str(len(self)).encode())
        for part in self.parts:
            digest.update(type(part).__name__.encode())
            for values in part.identity():
                digest.update(json.dumps(values).encode())
        return digest.hexdigest()

    def _rows(self, start: int, stop: int) -> Iterator[tuple[str, Any, str | None]]:
        """Name, row and mode; an error is given in the place of a row that cannot be read."""
        while start < stop:
            index = bisect_right(self._starts, start) - 1
            part, first = self.parts[index], self._starts[index]
            end = min(stop, self._starts[index + 1])
            found, problem = 0, "it ends too early"
            try:
                for name, row in self._reader(index)(start - first, end - first):
                    yield name, row, part.mode
                    found += 1
            except (OSError, pa.ArrowException, PertinenceError, StopIteration, RuntimeError) as error:
                problem, self._opened = explain(error), None
            for row_number in range(start - first + found, end - first):
                yield f"{part.name}:{row_number}", PertinenceError(problem), None
            start = end

    def _reader(self, index: int) -> Read:
        if self._opened is None or self._opened[0] != index:
            self._opened = index, self.parts[index].open()
        return self._opened[1]


def _decode(name: str, row: Any, mode: str | None) -> Decoded:
    try:
        if isinstance(row, PertinenceError):
            raise row
        return name, decode_image(open_row(row, mode))
    except Exception as error:  # Pillow may raise anything
        reason = first_line(error) if isinstance(error, PertinenceError) else explain(error)
        return name, unreadable(name, ADDRESS.sub("", reason))


def unreadable(name: str, reason: str) -> PertinenceError:
    """The error for an image that cannot be decoded or given to an expert."""
    return PertinenceError(f"{shown(name, 300)} cannot be read as an image ({reason})")


def open_inputs(
    inputs: Input | Iterable[Input],
    arguments: InputArguments | None = None,
    token: str | None = None,
    output: Path | None = None,
) -> InputImages:
    """Find the images that are named, without reading them.

    Args:
        inputs: one or several, see `Input`; of a folder all images, or, if there are none, all shards.
        arguments: split, configuration and column of data sets, and the number of images.
        token: Hub token.
        output: file that is not an image, although it may lie among them.

    Raises:
        PertinenceError: something does not exist, is of another kind, or has no images.
    """
    arguments = arguments or InputArguments()
    several = list(inputs) if isinstance(inputs, (list, tuple, Iterator)) else [inputs]
    if not several:
        raise PertinenceError("no images were named: give files, folders, patterns, shards or data sets")
    finder = _Finder(arguments, token, output)
    found = [one for given in several for one in finder.find(given)]
    finder.check_used()
    parts: list[Rows] = []
    for is_file, group in groupby(found, key=lambda one: isinstance(one, str)):
        alike: list[Any] = list(group)
        parts += [FileRows(tuple(alike))] if is_file else alike
    return InputImages(parts, arguments.limit)


class _Finder:
    """Finds the images of inputs; see `open_inputs`."""

    def __init__(self, arguments: InputArguments, token: str | None, output: Path | None):
        self.arguments, self.token = arguments, token
        self.output = None if output is None else os.path.realpath(output)
        self.has_columns = self.has_splits = False

    def find(self, given: Input) -> Iterable[str | Rows]:
        """Paths of image files, and what else holds images, in order."""
        if isinstance(given, datasets.Dataset):
            return [self._of_dataset(given, "dataset")]
        if not isinstance(given, (str, os.PathLike)):
            raise PertinenceError(
                f"expected paths, Hub ids or a datasets.Dataset of one split, got {type(given).__name__}"
            )
        place = os.fspath(given)
        if place == STANDARD_INPUT:
            return [self._of_file(path) for path in _listed()]
        if os.path.isdir(place):
            return self._of_folder(place)
        if os.path.isfile(place):
            return [self._of_file(place)]
        if glob.has_magic(place):
            return self._of_pattern(place)
        return [self._from_hub(place)]

    def check_used(self) -> None:
        """Refuse settings that no input has a use for."""
        for name, is_used in (
            ("split", self.has_splits),
            ("dataset_config", self.has_splits),
            ("image_column", self.has_columns),
        ):
            if getattr(self.arguments, name) is not None and not is_used:
                what = "a parquet file or a data set" if name == "image_column" else "a data set on the Hub"
                raise PertinenceError(f"--{name.replace('_', '-')} has no use here: no input is {what}")

    def _of_file(self, path: str) -> str | Rows:
        lower = path.lower()
        if self._is_output(path):
            raise PertinenceError(f"{path} is the output: it cannot be an input, too")
        if lower.endswith(COMPRESSED):
            raise PertinenceError(
                f"{path} is compressed, so it cannot be read from the middle: give a plain .tar, or unpack it"
            )
        if lower.endswith(TAR):
            return TarRows.of(path)
        if lower.endswith(PARQUET):
            self.has_columns = True
            return ParquetRows.of(path, self.arguments.image_column)
        suffix = Path(path).suffix
        if suffix and suffix.lower() not in image_suffixes():
            raise PertinenceError(
                f"{path} is no image, by its suffix {suffix}, and no .parquet or .tar; a list of paths is given by "
                "standard input: `pertinence classify MODEL - < list.txt`"
            )
        return path

    def _is_output(self, path: str) -> bool:
        """Whether a file is the output, or lies beside it while it is made."""
        real = os.path.realpath(path)
        return self.output is not None and (real == self.output or real.startswith(f"{self.output}."))

    def _of_folder(self, folder: str) -> Iterable[str | Rows]:
        files = sorted(_walk(folder))
        images = [path for path in files if Path(path).suffix.lower() in image_suffixes()]
        shards = [path for path in files if path.lower().endswith((*PARQUET, *TAR))]
        shards = [path for path in shards if not self._is_output(path)]
        if not images and not shards:
            raise PertinenceError(f"the folder {folder} holds no images, and no parquet or tar files")
        return images or map(self._of_file, shards)

    def _of_pattern(self, pattern: str) -> Iterable[str | Rows]:
        paths = [path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
        paths = [path for path in paths if not self._is_output(path)]
        if not paths:
            raise PertinenceError(f"no file matches {pattern}")
        return map(self._of_file, paths)

    def _from_hub(self, place: str) -> Rows:
        repo_id = split_revision(place)[0]
        if Path(place).suffix.lower() in {*image_suffixes(), *PARQUET, *TAR, ".gz", ".tgz"}:
            raise PertinenceError(f"there is no file {place}")
        check_place(repo_id)
        self.has_splits = True
        split = load_split(DataArguments(place, self.arguments.split, self.arguments.dataset_config), self.token)
        return self._of_dataset(split, place if self.arguments.split is None else f"{place}:{self.arguments.split}")

    def _of_dataset(self, dataset: datasets.Dataset, name: str) -> Rows:
        self.has_columns = True
        dataset = dataset.with_format(None)  # a format of the user's may transform images or hide columns
        column = find_column(dataset, self.arguments.image_column, datasets.Image, "image")
        if len(dataset) == 0:
            raise PertinenceError(f"the data set {name} is empty: there are no images to classify")
        encoded = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False))
        return DatasetRows(encoded, column, name, dataset.features[column].mode)


def _listed() -> Iterator[str]:
    """The paths on standard input, one a line."""
    found = False
    for line in sys.stdin.buffer:
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path:
            found = True
            yield path
    if not found:
        raise PertinenceError("standard input lists no paths: write one a line")


def _walk(folder: str) -> Iterator[str]:
    """The files in a folder and its subfolders; hidden ones are left out, links are followed."""

    def refuse(error: OSError) -> None:
        raise PertinenceError(f"the folder {error.filename} cannot be read ({error.strerror})") from error

    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(place, name) for name in files if not name.startswith("."))
