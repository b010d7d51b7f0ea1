"""Settings: which images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..utils.validation import check_least


@dataclass
class DataArguments:
    """Which images."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Data set on the Hub (id, or id@revision), or a local folder of images or of parquet files."
        },
    )
    split: str | None = field(
        default=None, metadata={"help": "Split to use; must hold images that no expert was trained on."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a data set that has several."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Default: the only image column."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only class-label column."})
    label_map: str | None = field(
        default=None,
        metadata={
            "help": "by_name: labels are found among those of the experts by their names; default: by their indices.",
            "choices": ["by_name"],
        },
    )
    limit: int | None = field(default=None, metadata={"help": "Use only the first so many images."})

    def __post_init__(self):
        if self.limit is not None:
            check_least(self, limit=1)

    def replaced(self, dataset: str | None, split: str | None) -> DataArguments:
        """The same for another data set or split, where one is given."""
        return replace(self, dataset=dataset or self.dataset, split=split or self.split)
