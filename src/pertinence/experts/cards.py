"""Metadata and licence from the model card of a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..utils.parsing import MAX_YAML, parse_yaml
from ..utils.validation import LONGEST_NAME
from .loading import Checkpoint


logger = logging.get_logger(__name__)


def card_metadata(card: Path) -> dict[str, Any]:
    """The metadata at the head of a model card."""
    with card.open(encoding="utf-8") as file:
        block = re.match(r"\s*---\r?\n(.*?)\n---", file.read(MAX_YAML), re.DOTALL)
    return (parse_yaml(block[1]) or {}) if block else {}


def read_licence(checkpoint: Checkpoint, title: str) -> str | None:
    """The licence of a checkpoint, from its card or from timm's `pretrained_cfg`; None if there is none.

    Several licences are separated by commas; a licence without a Hub identifier has the name that the card gives it.
    """
    licence = None
    try:
        card = checkpoint.folder and checkpoint.folder / "README.md"
        if card is not None and card.is_file():
            values = card_metadata(card)
            licence = values.get("license")
            if licence == "other":
                licence = values.get("license_name") or licence
    except Exception as error:  # the licence is only shown, so no error matters
        logger.info(f"The licence of expert {title!r} is unknown: {error}")
    licence = licence or (getattr(checkpoint.model.config, "pretrained_cfg", None) or {}).get("license")
    # A card may contain anything; only one line is stored.
    names = [name for name in (licence if isinstance(licence, list) else [licence]) if isinstance(name, str)]
    return " ".join(", ".join(names).split())[:LONGEST_NAME] or None
