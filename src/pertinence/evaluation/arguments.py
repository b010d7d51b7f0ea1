"""Settings of the benchmark, and of classifying many images."""

from __future__ import annotations

from dataclasses import dataclass

from ..predictions.arguments import ExpertArguments, RuntimeArguments
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


@dataclass
class ClassificationArguments(ExpertArguments):
    """How many images are classified, and what is written of each."""

    on_bad_image: str = setting(
        "skip",
        "If an image cannot be read: skip it, with the reason in its row, or stop with an error.",
        group="data",
        choices=["skip", "stop"],
    )
    top_k: int | None = setting(
        None, "Labels in top_labels; default: 5, or all if there are fewer.", group="output", least=1
    )
    part_size: int = setting(
        1024,
        "Images of a part, in whole batches; a run that is killed classifies those of unfinished parts again.",
        group="output",
        least=1,
    )
    resume: bool = setting(True, "Continue the same run where it stopped.", group="output")
