"""Settings of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from ..predictions.arguments import RuntimeArguments
from ..utils.settings import setting


@dataclass
class BenchmarkArguments(RuntimeArguments):
    """What to time, and how."""

    batch_size: list[int] = setting([1, 32, 256], "Images per call; one or several values.", group="hardware", least=1)  # type: ignore[assignment]
    rounds: int = setting(
        5, "Number of timings of each point, of which the median is stored.", group="hardware", least=1
    )
    operating_point: str | None = setting(None, "Time only the point of this name.", group="output")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batch_size = sorted(set(self.batch_size))
