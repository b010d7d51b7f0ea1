"""The processes that a launcher starts."""

import logging
import os


def quiet_other_processes() -> None:
    """Of the processes that a launcher started only the first warns."""
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("pertinence").setLevel(logging.ERROR)
