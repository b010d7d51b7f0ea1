"""Settings of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from ..predictions.arguments import RuntimeArguments
from ..utils.settings import setting


@dataclass
class BenchmarkArguments(RuntimeArguments):
    """What to time, and how."""

    batch_size: list[int] = setting([1, 32], "Images per call; one or several values.", group="hardware", least=1)  # type: ignore[assignment]
    rounds: int = setting(
        5, "Timings of each point and expert, of which the median is stored.", group="hardware", least=1
    )
    operating_point: list[str] | None = setting(
        None,
        'Points to time, or "all"; default: the default point, the fastest and the most accurate one.',
        group="output",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batch_size = sorted(set(self.batch_size))
