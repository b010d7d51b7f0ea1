"""Processes that a launcher starts."""

import logging
import os


def quiet_other_processes() -> None:
    """Silence warnings in all processes but the first of those that a launcher started."""
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("pertinence").setLevel(logging.ERROR)
