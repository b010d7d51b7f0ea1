"""Settings of the commands, written once: flags, YAML and Python all come from these dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from .checkpoints import LoadOptions
from .configuration_pertinence import PREPROCESSING_MODES
from .errors import PertinenceError


@dataclass
class DataArguments:
    """Which images."""

    dataset: str = field(metadata={"help": "Hub name of a data set, or a local folder of images or of parquet files."})
    split: str = field(metadata={"help": "Split to use; must hold images that no expert was trained on."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a data set that has several."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Default: the only image column."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only class-label column."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first so many images."})

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise PertinenceError(f"limit must be at least 1, got {self.limit}")

    def replaced(self, dataset: str | None, split: str | None) -> DataArguments:
        """The same for another data set or split, where one is given."""
        return replace(self, dataset=dataset or self.dataset, split=split or self.split)


@dataclass
class RuntimeArguments:
    """How experts are run."""

    batch_size: int = field(default=64, metadata={"help": "Images that an expert receives at once."})
    num_workers: int = field(default=0, metadata={"help": "Processes that decode images; 0: this one."})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; default: an accelerator if there is one."}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "float32, bfloat16 or float16; default: as each checkpoint says."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where predictions are kept; default: $HF_HOME/pertinence."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that experts bring with them. Read it first."}
    )
    token: str | None = field(default=None, metadata={"help": "Hub token; default: that of `hf auth login`."})

    def __post_init__(self):
        if self.batch_size < 1:
            raise PertinenceError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.dtype is not None and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise PertinenceError(f"dtype {self.dtype!r} is not a torch dtype: try float32, bfloat16 or float16")

    @property
    def load_options(self) -> LoadOptions:
        return LoadOptions(dtype=self.dtype, token=self.token, trust_remote_code=self.trust_remote_code)


@dataclass
class SearchArguments(RuntimeArguments):
    """How dispatchers are searched."""

    recipe: str = field(
        default="paper",
        metadata={"help": "paper: one decision, then one expert, which answers alone.", "choices": ["paper"]},
    )
    evidence: str = field(
        default="both",
        metadata={
            "help": "What the decision of `paper` reads: pooled features alone (as in the paper), or its confidence, "
            "too.",
            "choices": ["features", "both"],
        },
    )
    population: int = field(default=50, metadata={"help": "Individuals of a generation."})
    generations: int = field(default=50, metadata={"help": "Generations of NSGA-II."})
    seed: int = field(default=0, metadata={"help": "Fixes the splits, the genetic algorithm and the training."})
    epochs: int = field(default=20, metadata={"help": "Passes over the fit images that train a head."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Adam's."})
    head_batch_size: int = field(default=256, metadata={"help": "Images of one step that trains heads."})
    unsolved: str = field(
        default="cheapest",
        metadata={"help": "Where images go that no expert gets right.", "choices": ["cheapest", "largest"]},
    )
    select_fraction: float = field(
        default=0.4, metadata={"help": "Share of the search images that choose heads rather than fit them."}
    )
    report_fraction: float = field(
        default=0.2, metadata={"help": "Share held out to report on, where no report images are given."}
    )
    preprocessing: str = field(
        default="exact",
        metadata={"help": "exact: each expert's own pixels; fast: torchvision for all.", "choices": ["exact", "fast"]},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "New folder for the model, search_result.json and the plot of the front."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("population", 2), ("generations", 1), ("epochs", 1), ("head_batch_size", 1)):
            if getattr(self, name) < least:
                raise PertinenceError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("select_fraction", "report_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise PertinenceError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name, known in (
            ("recipe", ("paper",)),
            ("evidence", ("features", "both")),
            ("unsolved", ("cheapest", "largest")),
            ("preprocessing", PREPROCESSING_MODES),
        ):
            if getattr(self, name) not in known:
                raise PertinenceError(f"{name}={getattr(self, name)!r} is not one of {', '.join(known)}")

    @property
    def search_settings(self) -> dict[str, Any]:
        """The settings that decide what is found; the others change only where and how fast."""
        runtime = {field.name for field in fields(RuntimeArguments)} - {"dtype"} | {"output_dir"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in runtime}
