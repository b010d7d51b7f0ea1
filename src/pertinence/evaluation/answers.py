"""Answers of a model as rows of a table, and files of such rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import torch

from ..models.modeling_pertinence import PertinenceForImageClassification, PertinenceOutput
from ..utils.errors import PertinenceError


SCHEMA = pa.schema(
    [
        pa.field("input", pa.string(), nullable=False),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("top_labels", pa.list_(pa.string())),
        ("top_scores", pa.list_(pa.float32())),
        ("expert", pa.string()),
        ("experts_run", pa.list_(pa.string())),
        ("gmacs", pa.float32()),
        ("operating_point", pa.string()),
        ("confidence", pa.float32()),
        ("abstained", pa.bool_()),
        ("ood_p_value", pa.float32()),
        ("error", pa.string()),
    ]
)
"""One row for each image; if it could not be read, all but `input` and `error` are null."""
GROUP = 2**14
"""Rows that are written to a file at once."""


def answer_rows(
    model: PertinenceForImageClassification, point: str, output: PertinenceOutput, top_k: int
) -> list[dict[str, Any]]:
    """The columns of each answered image, but `input`."""
    assert output.logits is not None
    assert output.experts_run is not None
    assert output.expert_indices is not None
    assert output.gmacs is not None
    assert output.abstained is not None
    names = model.config.expert_names
    labels = cast("dict[int, str]", model.config.id2label)  # transformers makes its keys numbers
    scores, indices = output.logits.float().softmax(1).topk(top_k)
    each = zip(
        scores.tolist(),
        indices.tolist(),
        output.expert_indices.tolist(),
        output.experts_run.tolist(),
        output.gmacs.tolist(),
        known_values(output.confidence, len(output.logits)),
        output.abstained.tolist(),
        known_values(output.ood_p_value, len(output.logits)),
        strict=True,
    )
    return [
        {
            "label": labels[best[0]],
            "score": sure[0],
            "top_labels": [labels[index] for index in best],
            "top_scores": sure,
            "expert": names[last],
            "experts_run": [name for name, did_run in zip(names, ran, strict=True) if did_run],
            "gmacs": gmacs,
            "operating_point": point,
            "confidence": confidence,
            "abstained": abstained,
            "ood_p_value": p_value,
        }
        for sure, best, last, ran, gmacs, confidence, abstained, p_value in each
    ]


def known_values(values: torch.Tensor | None, count: int) -> list[float | None]:
    """The value of each of so many images, float (B,); None where nothing is known."""
    listed = [None] * count if values is None else values.tolist()
    return [None if value is None or math.isnan(value) else value for value in listed]


class _Writer(Protocol):
    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class _Parquet:
    def __init__(self, path: Path):
        self._file = pq.ParquetWriter(path, SCHEMA)
        self.close = self._file.close

    def write(self, table: pa.Table) -> None:
        self._file.write_table(table)


class _Csv:
    """Lists are written as JSON text."""

    def __init__(self, path: Path):
        is_list = [pa.types.is_list(one.type) for one in SCHEMA]
        self._lists = [one.name for one, is_one in zip(SCHEMA, is_list, strict=True) if is_one]
        fields = [one.with_type(pa.string()) if is_one else one for one, is_one in zip(SCHEMA, is_list, strict=True)]
        self._file = pc.CSVWriter(path, pa.schema(fields))
        self.close = self._file.close

    def write(self, table: pa.Table) -> None:
        for name in self._lists:
            values = table.column(name).to_pylist()
            text = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
            table = table.set_column(table.column_names.index(name), name, pa.array(text, pa.string()))
        self._file.write_table(table)


class _Jsonl:
    def __init__(self, path: Path):
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self.close = self._file.close

    def write(self, table: pa.Table) -> None:
        self._file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist())


FORMATS: dict[str, Callable[[Path], _Writer]] = {".parquet": _Parquet, ".csv": _Csv, ".jsonl": _Jsonl}
"""What writes a file, by its suffix."""


def check_output(path: Path) -> None:
    """Raise `PertinenceError` unless the suffix of a file names a format, and it is no folder."""
    if path.suffix.lower() not in FORMATS:
        raise PertinenceError(f"the output {path} names no format by its suffix: expected one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise PertinenceError(f"the output {path} is a folder: name a file, such as {path / 'answers.parquet'}")


@contextmanager
def writer_of(path: Path, suffix: str) -> Iterator[_Writer]:
    """What writes rows to a file in the format of a suffix; closed at the end."""
    writer = FORMATS[suffix.lower()](path)
    try:
        yield writer
    finally:
        writer.close()


def large_tables(files: Iterable[Path]) -> Iterator[pa.Table]:
    """The rows of parquet files, joined to tables of about `GROUP` rows."""
    waiting: list[pa.Table] = []
    for path in files:
        waiting.append(pq.read_table(path, schema=SCHEMA, memory_map=False))
        if sum(map(len, waiting)) >= GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def to_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as a table; a column that a row lacks is null."""
    return pa.Table.from_pylist(list(rows), SCHEMA)
