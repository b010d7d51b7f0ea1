"""Progress bars, which the switches of transformers and datasets turn off."""

from __future__ import annotations

import sys

from transformers.utils import logging


def progress_bar(total: int, description: str, unit: str, show: bool = True):
    """A tqdm bar; hidden if `show` is false or `disable_progress_bar(s)` of transformers or datasets was called."""
    datasets = sys.modules.get("datasets")  # only who has imported it can have turned its bars off
    hidden = not show or (datasets is not None and datasets.are_progress_bars_disabled())
    # When transformers' bars are turned off, `logging.tqdm` returns an empty object, which ignores `disable`.
    return logging.tqdm(total=total, desc=description, unit=unit, disable=hidden)
