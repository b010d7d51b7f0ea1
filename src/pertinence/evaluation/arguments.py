"""Settings: what is timed."""

from __future__ import annotations

from dataclasses import dataclass

from ..predictions.arguments import RuntimeArguments
from ..utils.settings import setting


@dataclass
class BenchmarkArguments(RuntimeArguments):
    """What is timed."""

    batch_size: list[int] = setting([1, 32, 256], "Images of a call, one or several.", group="hardware", least=1)  # type: ignore[assignment]
    rounds: int = setting(5, "How often each is timed; the median counts.", group="hardware", least=1)
    operating_point: str | None = setting(None, "Time only the point of this name.", group="output")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batch_size = sorted(set(self.batch_size))
