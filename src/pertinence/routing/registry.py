"""The registry of kinds of evidence; it imports none of their code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.registry import Registry


if TYPE_CHECKING:
    from .evidence import Evidence

EVIDENCE: Registry[Evidence] = Registry(
    "evidence",
    {name: f"{__package__}.evidence:{name.upper()}" for name in ("features", "confidence", "mix", "both")},
    asked=("version", "reads", "num_statistics", "width", "fit", "compute"),
)
