"""Settings of the images to use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..utils.settings import Settings, setting


@dataclass
class DataArguments(Settings):
    """Which images to use."""

    dataset: str | None = setting(
        None, "Hub id (or id@revision) of a data set, or a local folder of images or parquet files.", group="data"
    )
    split: str | None = setting(None, "Split; its images must not have trained any expert.", group="data")
    dataset_config: str | None = setting(None, "Configuration of a data set that has several.", group="data")
    image_column: str | None = setting(None, "Default: the only image column.", group="data")
    label_column: str | None = setting(None, "Default: the only class-label column.", group="data")
    label_map: str | None = setting(
        None,
        "by_name: find the labels that all experts share, and those of the data set among them, by name; default: by "
        "index.",
        group="data",
        choices=["by_name"],
    )
    limit: int | None = setting(None, "Use only the first N images.", group="data", least=1)

    def replaced(self, dataset: str | None, split: str | None) -> DataArguments:
        """A copy with another data set or split, if one is given."""
        return replace(self, dataset=dataset or self.dataset, split=split or self.split)


@dataclass
class InputArguments(Settings):
    """Which of the images that were named are classified, and where they lie in a data set."""

    split: str | None = setting(None, "Split of a data set on the Hub.", group="data")
    dataset_config: str | None = setting(None, "Configuration of a data set that has several.", group="data")
    image_column: str | None = setting(
        None, "Column of parquet files or a data set; default: the only image column.", group="data"
    )
    limit: int | None = setting(None, "Classify only the first N images.", group="data", least=1)
