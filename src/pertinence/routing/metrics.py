"""Figures: measurements of a model on one set of images, and how tables show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..utils.errors import PertinenceError, shown
from ..utils.names import display_width, padded
from ..utils.tables import output_width
from ..utils.validation import is_name, is_number, is_whole
from .costs import GMACS, LATENCY, cost_title, cost_unit


ACCURACY, AGREEMENT = "accuracy", "agreement"
FEW_IMAGES = 1000
"""With fewer search images, what chooses the default point is uncertain by about a point of accuracy."""
_STORED_APART = (GMACS, LATENCY)
"""The units whose figures have their own key in format 1; the others are stored under `costs`."""


@dataclass(frozen=True)
class Figures:
    """Measurements on one set of images.

    Attributes:
        accuracy: share of right answers, 0 to 1.
        interval: 95 % interval of the accuracy (Wilson), (low, high).
        costs: mean cost per image, by unit; always contains "gmacs".
        expert_shares: for each expert of the pool the share of images on which it ran last; sums to 1.
        samples: number of images.
        approximate: whether only the largest scores were kept for decisions and mixtures (see `predictions`).
        objective: the unit that the search minimised.
        measure: "accuracy", or "agreement" if right means to predict what the largest expert predicts.
        estimate: whether the accuracy is an estimate for the saved heads, not a measurement of them: by nested
            cross-validation, or (in older files) by out-of-fold decisions.
        out_of_fold: accuracy of out-of-fold decisions, which chose this point and so flatters it; None if there is no
            such estimate. Only the choice of the default operating point uses it.
        class_loss: bound on the accuracy that the class loses which loses most, against the reference expert; None if
            it was not estimated. Only the budget `max_class_loss` uses it.
    """

    accuracy: float
    interval: tuple[float, float]
    costs: Mapping[str, float]
    expert_shares: tuple[float, ...]
    samples: int
    approximate: bool = False
    objective: str = GMACS
    measure: str = ACCURACY
    estimate: bool = False
    out_of_fold: float | None = None
    class_loss: float | None = None

    @property
    def cost(self) -> float:
        """Mean cost per image in the unit that the search minimised."""
        return self.costs[self.objective]

    def __str__(self) -> str:
        spent = ", ".join(f"{cost:.4g} {cost_title(unit)}" for unit, cost in self.costs.items())
        return f"{100 * self.accuracy:.2f} % {self.measure} at {spent}"

    @property
    def gmacs(self) -> float:
        """Mean GMACs (10^9 multiply-adds) per image."""
        return self.costs[GMACS]

    @property
    def latency(self) -> float | None:
        """Mean milliseconds per image, from the latencies of the experts; None unless the search measured them."""
        return self.costs.get(LATENCY)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the accuracy is stored under the name of its measure."""
        others = {unit: cost for unit, cost in self.costs.items() if unit not in _STORED_APART}
        implied = LATENCY if LATENCY in self.costs else GMACS
        return {
            self.measure: self.accuracy,
            "interval": list(self.interval),
            GMACS: self.gmacs,
            "expert_shares": list(self.expert_shares),
            "samples": self.samples,
            "approximate": self.approximate,
            LATENCY: self.latency,
            "estimate": self.estimate,
            **({} if self.out_of_fold is None else {"out_of_fold": self.out_of_fold}),
            **({} if self.class_loss is None else {"class_loss": self.class_loss}),
            **({"costs": others} if others else {}),
            **({"objective": self.objective} if self.objective != implied else {}),
        }

    def check(self, where: str, num_experts: int) -> None:
        """Raise `PertinenceError` unless these can be figures of a pool of `num_experts`."""
        if len(self.interval) != 2 or len(self.expert_shares) != num_experts:
            raise PertinenceError(f"{where}: its figures need an interval of two and {num_experts} shares")
        shares = (self.accuracy, *self.expert_shares, *([] if self.out_of_fold is None else [self.out_of_fold]))
        if not (
            all(is_number(share, 0, 1) for share in shares)
            and all(map(is_number, self.interval))
            and all(is_number(cost, 0) for cost in self.costs.values())
            and all(map(is_name, self.costs))
            and self.objective in self.costs
        ):
            raise PertinenceError(
                f"{where}: its figures need shares between 0 and 1 and costs that are not negative, all of them finite"
            )
        if self.class_loss is not None and not is_number(self.class_loss, -1):
            raise PertinenceError(
                f"{where}: its class loss is {shown(self.class_loss)}, expected a share of the images of a class"
            )
        if not is_whole(self.samples, 1):
            raise PertinenceError(f"{where}: its figures are of {shown(self.samples)} images, expected at least 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figures:
        measure = AGREEMENT if AGREEMENT in values else ACCURACY
        apart = {GMACS: values[GMACS], LATENCY: values.get(LATENCY)}
        costs = {**apart, **(values.get("costs") or {})}
        return cls(
            accuracy=float(values[measure]),
            interval=tuple(values["interval"]),
            costs={str(unit): float(cost) for unit, cost in costs.items() if cost is not None or unit == GMACS},
            expert_shares=tuple(values["expert_shares"]),
            samples=int(values["samples"]),
            approximate=bool(values.get("approximate", False)),
            objective=str(values.get("objective", GMACS if apart[LATENCY] is None else LATENCY)),
            measure=measure,
            estimate=bool(values.get("estimate", False)),
            out_of_fold=None if values.get("out_of_fold") is None else float(values["out_of_fold"]),
            class_loss=None if values.get("class_loss") is None else float(values["class_loss"]),
        )


@dataclass(frozen=True)
class Latency:
    """Measured latency of an operating point, preprocessing included.

    Attributes:
        device: model of a GPU, else the kind of device (see `utils.distributed.device_name`); with what runs the
            experts if that was asked for: "cpu, onnx".
        batch_size: images per call; the time of a call is divided by it.
        milliseconds: milliseconds per image, the median of several rounds.
        low, high: quartiles of the rounds.
        images: "given", or "synthetic": random images, which may be routed unlike real ones.
        p50, p95: quantiles of the milliseconds of a call; None in files of older versions.
        threads: number of threads of the CPU; None on other devices, and in files of older versions.
    """

    device: str
    batch_size: int
    milliseconds: float
    low: float
    high: float
    images: str = "given"
    p50: float | None = None
    p95: float | None = None
    threads: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; those that are None are left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def check(self, where: str) -> None:
        """Raise `PertinenceError` unless this can be a measurement."""
        times = [self.milliseconds, self.low, self.high, *(t for t in (self.p50, self.p95) if t is not None)]
        texts = self.device, self.images
        counts = [self.batch_size, *([] if self.threads is None else [self.threads])]
        if not (
            all(is_whole(count, 1) for count in counts)
            and all(is_number(t, 0) for t in times)
            and all(map(is_name, texts))
        ):
            raise PertinenceError(
                f"{where}: a latency must name device, batch size and milliseconds, got {shown(self)}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Latency:
        return cls(**{key: values[key] for key in cls.__dataclass_fields__ if key in values})


def saved_share(figures: Figures, reference: Figures) -> float:
    """Share of the reference expert's cost that is saved; below zero if more is spent."""
    return 1 - figures.cost / reference.cost


def describe_saving(point: str, figures: Figures, expert: str, reference: Figures) -> str:
    """How a sentence about an operating point begins: what it saves of the cost of the reference expert."""
    share, unit = 100 * saved_share(figures, reference), cost_unit(figures.objective)
    saved = f"saves {share:.1f} % of the {unit} of" if share >= 0 else f"takes {-share:.1f} % more {unit} than"
    return f"The default point, {point}, {saved} {expert}"


def describe_few(figures: Figures | None) -> str | None:
    """That too few search images chose a point, if so."""
    if figures is None or figures.samples >= FEW_IMAGES:
        return None
    return f"only {figures.samples} search images chose it (take {FEW_IMAGES:,} or more)"


def figure_header(figures: Figures | None) -> list[str]:
    """Headers of the columns of `figure_cells` before those of the experts."""
    units = [GMACS] if figures is None else figures.costs
    return [figures.measure if figures else ACCURACY, "95 % interval", *map(cost_title, units)]


def figure_cells(figures: Figures) -> list[str]:
    """Accuracy, interval, costs and the share of each expert, as every table shows them."""
    low, high = figures.interval
    return [
        f"{100 * figures.accuracy:.2f} %",
        f"{100 * low:.2f} .. {100 * high:.2f}",
        *(f"{cost:.4g}" for cost in figures.costs.values()),
        *(f"{100 * share:.0f} %" for share in figures.expert_shares),
    ]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], expendable: Sequence[int] = ()) -> str:
    """A text table; the first column is left-aligned, the others are right-aligned.

    Args:
        header, rows: the cells.
        expendable: columns that are left out, one by one in this order, while the table is wider than the terminal.
    """
    if expendable and max(map(display_width, format_table(header, rows).splitlines())) > output_width():
        column, *others = expendable
        kept = [[cell for place, cell in enumerate(row) if place != column] for row in (header, *rows)]
        return format_table(kept[0], kept[1:], [place - (place > column) for place in others])
    widths = [max(display_width(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            padded(cell, width, right=place > 0) for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(line, rows)])


def as_plain(value: Any) -> Any:
    """Convert tuples to lists at every depth, as a round trip through JSON does."""
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    return value
