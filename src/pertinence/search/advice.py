"""`Advice`: what a search of a pool can be expected to give; see `advising` for how it is found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..evaluation.figures import figure_file, name_points, set_log_costs
from ..routing.metrics import format_table
from .pairs import PairValue


SHOWN_PAIRS = 8


@dataclass(frozen=True)
class ExpertAdvice:
    """One expert alone.

    Attributes:
        name, cost, accuracy, interval: its figures on the images, with a 95 % interval (Wilson).
        dominated_by: the cheapest expert that is cheaper and more accurate; None if there is none.
        clearly: whether that is clear: by two paired standard errors.
    """

    name: str
    cost: float
    accuracy: float
    interval: tuple[float, float]
    dominated_by: str | None
    clearly: bool


@dataclass(frozen=True)
class Advice:
    """What a search of a pool can be expected to give.

    Attributes:
        experts: every expert alone, by rising cost.
        reference: index of the most accurate one, which savings and differences refer to.
        pairs: what pairs of experts are worth, the best first.
        taken: indices of the experts to search with, rising; a single one if one model is enough.
        saving: what the taken experts are expected to save without loss, by pairs that were chosen on other images.
        at: for savings of 20, 40 and 60 % the expected difference of accuracy to the reference and its standard error,
            likewise.
        unit: unit of cost.
        samples: number of images.
        notes: what to know about these figures.
        sources: Hub id or folder of each expert; empty for a table of predictions.
    """

    experts: tuple[ExpertAdvice, ...]
    reference: int
    pairs: tuple[PairValue, ...]
    taken: tuple[int, ...]
    saving: float
    at: dict[int, tuple[float, float]]
    unit: str
    samples: int
    notes: tuple[str, ...] = ()
    sources: tuple[str | None, ...] = ()

    @property
    def names(self) -> list[str]:
        return [expert.name for expert in self.experts]

    @property
    def is_one_enough(self) -> bool:
        """Whether no pair of experts is worth more than a single expert, beyond the noise of the images."""
        return len(self.taken) == 1

    def best_partner(self, big: int) -> PairValue | None:
        """The pair with the largest gain that ends with an expert; None if none is worth having."""
        pairs = [pair for pair in self.pairs if pair.members[1] == big and pair.is_worth_having]
        return max(pairs, key=lambda pair: pair.gain, default=None)

    @property
    def sentence(self) -> str:
        """The advice in one or two sentences."""
        names, reference = self.names, self.names[self.reference]
        if self.is_one_enough:
            return (
                f"One model is enough: {names[self.taken[0]]}. What the others add, on images that did not choose "
                f"them, is not above the noise of {self.samples} images; more images may show more."
            )
        taken = ", ".join(names[index] for index in self.taken)
        expected = "; ".join(
            f"at {percent} % saved {100 * mean:+.2f} ± {100 * error:.2f} points"
            for percent, (mean, error) in self.at.items()
        )
        saved = f"{100 * self.saving:.0f} % at no loss" if self.saving > 0 else "nothing without loss"
        return f"Search with {taken}. Expected without any tuning, against {reference}: it saves {saved}; {expected}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = self.names
        return {
            "reference": names[self.reference],
            "one_is_enough": self.is_one_enough,
            "take": [names[index] for index in self.taken],
            "saving_without_loss": self.saving,
            "difference_at": {str(percent): list(value) for percent, value in self.at.items()},
            "unit": self.unit,
            "samples": self.samples,
            "experts": [
                {
                    "name": one.name,
                    "cost": one.cost,
                    "accuracy": one.accuracy,
                    "interval": list(one.interval),
                    "dominated_by": one.dominated_by,
                    "clearly": one.clearly,
                }
                for one in self.experts
            ],
            "pairs": [
                {
                    "experts": [names[index] for index in pair.members],
                    "gain": pair.gain,
                    "error": pair.error,
                    "worth_having": pair.is_worth_having,
                    "saving_without_loss": pair.saving,
                    "saving_interval": list(pair.saving_interval),
                    "difference_at": {str(p): None if value is None else list(value) for p, value in pair.at.items()},
                }
                for pair in self.pairs
            ],
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        names, reference = self.names, self.names[self.reference]
        rows = [
            [
                one.name,
                f"{100 * one.accuracy:.2f} %",
                f"{100 * one.interval[0]:.2f} .. {100 * one.interval[1]:.2f}",
                f"{one.cost:.4g}",
                "" if one.dominated_by is None else f"{one.dominated_by}{'' if one.clearly else ' (not clearly)'}",
            ]
            for one in self.experts
        ]
        parts = [
            format_table(["expert", "accuracy", "95 % interval", self.unit, "dominated by"], rows, expendable=(2,))
        ]
        if self.pairs:
            best = {pair.members for big in range(len(names)) if (pair := self.best_partner(big)) is not None}
            shown = self.pairs[:SHOWN_PAIRS]
            cells = [
                [
                    " + ".join(names[index] for index in pair.members) + (" *" if pair.members in best else ""),
                    f"{100 * pair.gain:+.2f} ± {100 * pair.error:.2f}",
                    f"{100 * pair.saving:.0f} %",
                    f"{100 * pair.saving_interval[0]:.0f} .. {100 * pair.saving_interval[1]:.0f}",
                    *("" if value is None else f"{100 * value[0]:+.2f}" for value in pair.at.values()),
                ]
                for pair in shown
            ]
            header = ["pair, * best partner", "gain", "no loss", "95 %", "20 %", "40 %", "60 %"]
            parts += ["", format_table(header, cells, expendable=(3, 4))]
            count = f"{len(self.pairs)} pair{'s' * (len(self.pairs) > 1)}"
            if len(shown) < len(self.pairs):
                count += f", of which the best {len(shown)} are shown"
            parts += [
                f"{count}; on {self.samples} images, without any tuning.",
                "Gain: points of accuracy over random routing among single experts.",
                f"No loss: the largest saving at which the difference to {reference} is at least",
                "half its standard error. 20, 40, 60 %: the difference at that saving.",
            ]
        return "\n".join([*parts, "", *(f"Note: {note}" for note in self.notes), self.sentence])

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw accuracy against cost, and the pairs worth having, to a file in the format of its suffix."""
        with figure_file(path, 8, 5) as figure:
            axes = figure.subplots()
            for pair in [pair for pair in self.pairs if pair.is_worth_having][:SHOWN_PAIRS]:
                ends = [self.experts[index] for index in pair.members]
                lies_in = set(pair.members) <= set(self.taken)
                axes.plot(
                    [one.cost for one in ends], [100 * one.accuracy for one in ends], "-" if lies_in else ":",
                    color="C0" if lies_in else "0.6", lw=1 + 60 * min(pair.gain, 0.05), zorder=1,
                )  # fmt: skip
            for index, one in enumerate(self.experts):
                color = "C0" if index in self.taken else "0.6"
                low, high = (100 * abs(one.accuracy - bound) for bound in one.interval)
                axes.errorbar(one.cost, 100 * one.accuracy, [[low], [high]], fmt="s", color=color, ms=7,
                              elinewidth=0.8)  # fmt: skip
            set_log_costs(axes)
            axes.set_xlabel(f"{self.unit} per image")
            axes.set_ylabel("accuracy, %")
            axes.set_title("Experts to take (blue) and pairs worth having (thicker: more gain)", fontsize=10)
            axes.margins(0.12)
            axes.grid(alpha=0.25)
            points = [(one.cost, 100 * one.accuracy) for one in self.experts]
            name_points(axes, self.names, points)
