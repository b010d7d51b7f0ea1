"""Progress bars that transformers' and datasets' own switches silence."""

from __future__ import annotations

import datasets
from transformers.utils import logging


def progress_bar(total: int, description: str, unit: str, show: bool = True):
    """A tqdm bar; none where `show` is false, or `disable_progress_bar(s)` of transformers or datasets was called."""
    hidden = not show or datasets.are_progress_bars_disabled()
    # transformers' bar is an empty object when switched off, and knows no `disable` then.
    return logging.tqdm(total=total, desc=description, unit=unit, disable=hidden)
