"""The settings of each recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...routing.registry import EVIDENCE
from ...utils.errors import PertinenceError
from ...utils.settings import Settings, setting


@dataclass
class CascadeArguments(Settings):
    """How `cascade` is fitted: a decision after every expert."""

    folds: int = setting(5, "Folds that estimates are out of.", group="recipe", least=2)
    mixing: bool | None = setting(
        None, "Whether answers mix the experts that were run; default: unless --labels agree.", group="recipe"
    )


@dataclass
class PaperArguments(Settings):
    """How `paper` is fitted: one decision, then one expert, which answers alone."""

    stem: str | dict[str, Any] | None = setting(
        None,
        "A separate network (Hub id, id@revision or folder) whose features the decision reads; default: the cheapest "
        "expert.",
        group="recipe",
        decides=False,  # by its weights, not by its name
    )
    evidence: str = setting(
        "features",
        "What the decision reads of the cheapest expert: pooled features, its confidence (mix), or both. Of a table, "
        "which has no features, it reads the confidence.",
        group="recipe",
        choices=EVIDENCE.choices,
    )
    epochs: int = setting(20, "Passes over the fit images that train a head.", group="recipe", least=1)
    learning_rate: float = setting(1e-3, "Adam's.", group="recipe", above=0)
    head_batch_size: int = setting(256, "Images of one step that trains heads.", group="recipe", least=1)
    unsolved: str = setting(
        "cheapest",
        "Where images go that no expert gets right.",
        group="recipe",
        choices=["cheapest", "largest", "dropped"],
    )
    select_fraction: float = setting(
        0.4,
        "Share of the search images that choose heads rather than fit them.",
        group="recipe",
        above=0,
        below=1,
    )

    def check_unused(self) -> None:
        """Refuse what must not be given where another recipe is chosen.

        Raises:
            PertinenceError: a stem, which would be loaded for nothing.
        """
        if self.stem is not None:
            raise PertinenceError(
                "a cascade starts with an expert, so a separate stem has nothing to decide: leave stem out, or "
                "search with recipe paper or both"
            )
