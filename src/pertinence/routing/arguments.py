"""Settings of the operating point that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..utils.errors import PertinenceError
from ..utils.settings import Settings, setting


@dataclass
class BudgetArguments(Settings):
    """The budget that chooses an operating point, by the names of `set_budget`; at most one, default: the model's own
    point."""

    operating_point: str | None = setting(
        None, "Operating point of this name; default: that of the model.", group="model"
    )
    max_accuracy_loss: float | None = setting(
        None, "Cheapest point that loses at most this accuracy (0 to 0.2) against the reference expert.", group="model"
    )
    accuracy: float | None = setting(None, "Cheapest point of at least this accuracy (0 to 1).", group="model")
    saving: float | None = setting(
        None,
        "Most accurate point that saves at least this share (0 to 1) of the reference expert's operations.",
        group="model",
    )
    gmacs: float | None = setting(
        None, "Most accurate point of at most these GMACs an image, on average.", group="model"
    )
    latency_ms: float | None = setting(
        None, "Most accurate point of at most these milliseconds an image, see benchmark.", group="model"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.given) > 1:
            raise PertinenceError(f"give one budget at most, got {' and '.join(self.given)}")

    @property
    def given(self) -> dict[str, Any]:
        """The budget as the argument of `set_budget`; empty: the model's own point."""
        return {name: value for name, value in vars(self).items() if value is not None}
