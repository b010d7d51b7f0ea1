"""Settings: what is timed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..predictions.arguments import RuntimeArguments
from ..utils.validation import check_least


@dataclass
class BenchmarkArguments(RuntimeArguments):
    """What is timed."""

    batch_size: list[int] = field(default_factory=lambda: [1, 32, 256], metadata={"help": "Images of a call."})
    rounds: int = field(default=5, metadata={"help": "How often each is timed; the median counts."})
    operating_point: str | None = field(default=None, metadata={"help": "Time only the point of this name."})

    def __post_init__(self):
        super().__post_init__()
        check_least(self, rounds=1)
        self.batch_size = sorted(set(self.batch_size))
