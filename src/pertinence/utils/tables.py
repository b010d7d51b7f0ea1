"""Results as tables: which rows are shown, and the same rows for pandas, CSV and notebooks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol


if TYPE_CHECKING:
    from pandas import DataFrame

WIDEST = 100


def output_width() -> int:
    """Columns that the output may take: those of the terminal, at most 100, which are also taken without one."""
    return min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)


def evenly_spaced(count: int, most: int, needed: Iterable[int] = ()) -> list[int]:
    """At most `most` of `count` indices, rising: those needed, the first and the last, and others evenly between."""
    wanted = {index for index in needed if 0 <= index < count}
    for size in range(min(count, most), 0, -1):
        steps = max(size - 1, 1)
        shown = wanted | {round(step * (count - 1) / steps) for step in range(size)}
        if len(shown) <= most:
            return sorted(shown)
    return sorted(wanted)


class Tabular(Protocol):
    """What has rows: it is shown as a table by notebooks, and converts to pandas and CSV."""

    def rows(self) -> list[dict[str, Any]]:
        """One mapping of plain values for each row; what is unknown of a row may be left out."""
        ...

    def to_pandas(self) -> DataFrame:
        """The rows as a data frame."""
        from pandas import DataFrame  # imported here, as running a model does not need it

        return DataFrame(self.rows())

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Write the rows to a CSV file; without a path return its text."""
        text: str = self.to_pandas().to_csv(index=False)
        if path is None:
            return text
        Path(path).write_text(text, encoding="utf-8")
        return None

    def _repr_html_(self) -> str:
        html: str = self.to_pandas().to_html(index=False, float_format="{:.4g}".format, na_rep="", border=0)
        return html
