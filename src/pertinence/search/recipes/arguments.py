"""The settings of the built-in recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...routing.registry import EVIDENCE
from ...utils.errors import PertinenceError
from ...utils.settings import Settings, setting


@dataclass
class CascadeArguments(Settings):
    """Settings of `cascade`: a decision after every expert."""

    folds: int = setting(5, "Folds for out-of-fold estimates.", group="recipe", least=2)


@dataclass
class PaperArguments(Settings):
    """Settings of `paper`: one decision, then one expert, which answers alone."""

    stem: str | dict[str, Any] | None = setting(
        None,
        "Separate router backbone (Hub id, id@revision or folder) whose features the decision reads; default: the "
        "cheapest expert.",
        group="recipe",
        decides=False,  # the weights of the stem decide, not its name
    )
    evidence: str = setting(
        "features",
        "What the decision reads of the cheapest expert: pooled features, its confidence (mix), or both. A table has "
        "no features, so that the decision reads the confidence.",
        group="recipe",
        choices=EVIDENCE.choices,
    )
    epochs: int = setting(20, "Epochs of training a head on the fit images.", group="recipe", least=1)
    learning_rate: float = setting(1e-3, "Adam's.", group="recipe", above=0)
    head_batch_size: int = setting(256, "Images per training step of heads.", group="recipe", least=1)
    unsolved: str = setting(
        "cheapest",
        "Routing target of images that no expert gets right.",
        group="recipe",
        choices=["cheapest", "largest", "dropped"],
    )
    select_fraction: float = setting(
        0.4,
        "Share of the search images that choose among heads, rather than fit them.",
        group="recipe",
        above=0,
        below=1,
    )

    def check_unused(self) -> None:
        """Refuse settings that must not be given if another recipe is chosen.

        Raises:
            PertinenceError: there is a stem, which would not be used.
        """
        if self.stem is not None:
            raise PertinenceError(
                "a cascade starts with an expert, so a separate stem has nothing to decide: leave stem out, or "
                "search with recipe paper or both"
            )
