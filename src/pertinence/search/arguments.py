"""Settings of the commands, written once: flags, YAML and Python all come from these dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ..hub.configuration import PREPROCESSING_MODES
from ..predictions.arguments import RuntimeArguments
from ..routing.front import MAX_POINTS
from ..utils.errors import PertinenceError
from ..utils.validation import check_least


@dataclass
class SearchArguments(RuntimeArguments):
    """How dispatchers are searched."""

    recipe: str = field(
        default="cascade",
        metadata={
            "help": "cascade: a decision after every expert; paper: one decision, then one expert, which answers "
            "alone; both: one front over both.",
            "choices": ["cascade", "paper", "both"],
        },
    )
    population: int = field(default=50, metadata={"help": "Individuals of a generation."})
    generations: int = field(default=50, metadata={"help": "Generations of NSGA-II."})
    seed: int = field(default=0, metadata={"help": "Fixes the splits, the genetic algorithm and the training."})
    labels: str = field(
        default="given",
        metadata={
            "help": "given: those of the data set; agree: none are needed, right means as the largest expert answers.",
            "choices": ["given", "agree"],
        },
    )
    cost: str = field(
        default="gmacs",
        metadata={
            "help": "gmacs: operations; latency: milliseconds of each expert on this device, in batches of "
            "--batch-size.",
            "choices": ["gmacs", "latency"],
        },
    )
    folds: int = field(default=5, metadata={"help": "cascade: folds that its estimates are out of."})
    mixing: bool | None = field(
        default=None,
        metadata={
            "help": "cascade: whether answers mix the experts that were run; default: unless --labels agree.",
            "nargs": "?",  # HfArgumentParser gives a bare flag only to what has a default
            "const": True,
        },
    )
    variants: str = field(
        default="none",
        metadata={
            "help": "auto: try each expert on smaller images (and, with --cost latency, in 8 bits), and let the first "
            "expert of a chain be the variant that loses the least for what it saves.",
            "choices": ["none", "auto"],
        },
    )
    stem: str | None = field(
        default=None,
        metadata={
            "help": "paper: a separate network (Hub id, id@revision or folder) whose features the decision reads; "
            "default: the cheapest expert."
        },
    )
    evidence: str = field(
        default="features",
        metadata={
            "help": "paper: what the decision reads of the cheapest expert: pooled features alone, as in the paper, "
            "or its confidence, too. Of a table, which has no features, it reads the confidence.",
            "choices": ["features", "both"],
        },
    )
    epochs: int = field(default=20, metadata={"help": "paper: passes over the fit images that train a head."})
    learning_rate: float = field(default=1e-3, metadata={"help": "paper: Adam's."})
    head_batch_size: int = field(default=256, metadata={"help": "paper: images of one step that trains heads."})
    unsolved: str = field(
        default="cheapest",
        metadata={
            "help": "paper: where images go that no expert gets right.",
            "choices": ["cheapest", "largest", "dropped"],
        },
    )
    select_fraction: float = field(
        default=0.4, metadata={"help": "paper: share of the search images that choose heads rather than fit them."}
    )
    report_fraction: float = field(
        default=0.2, metadata={"help": "Share held out to report on, where no report images are given."}
    )
    front_size: int = field(default=200, metadata={"help": "Operating points that the model has at most."})
    baselines: bool = field(
        default=True, metadata={"help": "Tune confidence cascades by the same search, to compare with."}
    )
    preprocessing: str = field(
        default="exact",
        metadata={
            "help": "exact: each expert's own pixels; fast: torchvision for all.",
            "choices": list(PREPROCESSING_MODES),
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "New folder for the model, search_result.json and figures."}
    )
    resume: bool = field(default=True, metadata={"help": "Continue a search of the same settings in --output-dir."})

    def __post_init__(self):
        super().__post_init__()
        check_least(self, population=2, generations=1, seed=0, folds=2, epochs=1, head_batch_size=1, front_size=3)
        if self.front_size > MAX_POINTS:
            raise PertinenceError(f"front_size must be at most {MAX_POINTS}, got {self.front_size}")
        if not 0 < self.learning_rate < float("inf"):
            raise PertinenceError(f"learning_rate must be a positive number, got {self.learning_rate}")
        for name in ("select_fraction", "report_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise PertinenceError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        for setting in fields(self):
            known = setting.metadata.get("choices")
            if known and getattr(self, setting.name) not in known:
                raise PertinenceError(
                    f"{setting.name}={getattr(self, setting.name)!r} is not one of {', '.join(known)}"
                )
        if self.stem is not None and self.recipe == "cascade":
            raise PertinenceError(
                "a cascade starts with an expert, so a separate stem has nothing to decide: leave stem out, or "
                "search with recipe paper or both"
            )

    @property
    def search_settings(self) -> dict[str, Any]:
        """The settings that decide what is found; the others change only where and how fast."""
        runtime = {field.name for field in fields(RuntimeArguments)} - {"dtype"} | {"output_dir", "resume", "stem"}
        if self.cost == "latency":
            runtime -= {"batch_size", "device"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in runtime}
