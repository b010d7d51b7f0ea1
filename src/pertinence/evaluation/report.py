"""The report of a front: its figures on images that chose nothing, compared with baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from ..data.columns import Groups
from ..predictions.predictions import Predictions
from ..routing.front import Front, OperatingPoint
from ..routing.heads import Head
from ..routing.metrics import ACCURACY, Figures, as_plain, figure_cells, figure_header, format_table, saved_share
from ..routing.names import BEST_BELOW_REFERENCE
from ..utils.tables import Tabular, evenly_spaced
from .by_class import GroupComparison, compare_groups
from .candidates import Candidate
from .certainty import measure_certainty
from .intervals import Bootstrap, Difference, hull_hypervolume, hypervolume, random_mix_hull
from .outcomes import Outcome, evaluate_experts, evaluate_oracle, evaluate_point, routing_auroc
from .reliability import Reliability
from .summary import sentences, short_table


ROUNDING = 1e-9
SHOWN = 24
"""Largest number of operating points that are printed; all are stored."""


@dataclass(frozen=True)
class Series:
    """Operating points by rising cost on the search images, measured on the report images.

    Attributes:
        points: operating points, with their figures in `report`.
        versus_reference: for each point the difference of accuracy to the reference expert.
        versus_mix: for each point the difference of accuracy to random routing at its cost.
        default: index of the point that the default rule chooses on the search images.
        answers: for each point int64 (N, 32), number of answers by expert that ran last and by confidence.
    """

    points: tuple[OperatingPoint, ...]
    versus_reference: tuple[Difference, ...]
    versus_mix: tuple[Difference, ...]
    default: int
    answers: tuple[torch.Tensor, ...] = ()

    @property
    def figures(self) -> tuple[Figures, ...]:
        """On the report images, point by point."""
        return tuple(cast(Figures, point.report) for point in self.points)  # which `evaluate_front` gave each

    def to_dict(self) -> dict[str, Any]:
        return {
            "default": self.default,
            "points": [
                {
                    **{key: point.to_dict()[key] for key in ("name", "recipe", "members", "select")},
                    **figures.to_dict(),
                    "versus_reference": as_plain(asdict(reference)),
                    "versus_random_mix": as_plain(asdict(mix)),
                }
                for point, figures, reference, mix in zip(
                    self.points, self.figures, self.versus_reference, self.versus_mix, strict=True
                )
            ],
        }


@dataclass(frozen=True)
class Evaluation(Tabular):
    """A front and its baselines, measured on the same images; prints as a summary, and its `repr` has everything.

    Attributes:
        series: the operating points.
        expert_names: names of the experts of the pool.
        experts: figures of each expert alone.
        oracle: figures of the oracle router; its own cost is not counted.
        baselines: series of the baselines by name, such as confidence cascades and the same heads without a search.
        hypervolumes: area under random routing among the points of the front, of each baseline, among the experts
            ("random-mix"), and among experts and oracle, and under the best single expert without random routing
            ("static"); above the accuracy of the cheapest expert and up to the cost of the largest.
        auroc: for each expert, how well the default point predicts that it suffices.
        drop: generalisation gap: how much smaller the lead over the reference expert is on the report images than the
            search stated, as a mean over the front. None if the front has only single experts.
        reference: pool index of the expert that savings and differences refer to.
        warnings: sentences to read first.
        by_class: the default point compared with the reference expert class by class; None if right means to agree
            with the largest expert.
        by_group: the same by the values of a column; None if none was named.
        certainty: how far the confidence of the default point can be believed, and that of the reference expert with
            temperature scaling; empty if the model does not know how certain its answers are.
    """

    series: Series
    expert_names: tuple[str, ...]
    experts: tuple[Figures, ...]
    oracle: Figures
    baselines: Mapping[str, Series]
    hypervolumes: Mapping[str, float]
    auroc: Mapping[str, float]
    drop: float | None
    reference: int
    warnings: tuple[str, ...] = ()
    by_class: GroupComparison | None = None
    by_group: GroupComparison | None = None
    certainty: tuple[Reliability, ...] = ()

    @property
    def front(self) -> Front:
        return Front(self.series.points, self.expert_names, self.default, self.experts[self.reference].cost)

    @property
    def default(self) -> str:
        return self.series.points[self.series.default].name

    @property
    def gap_closed(self) -> float | None:
        """Share of the area between random routing and the oracle that the front closes."""
        gap = self.hypervolumes["oracle"] - self.hypervolumes["random-mix"]
        return (self.hypervolumes["front"] - self.hypervolumes["random-mix"]) / gap if gap > 0 else None

    @property
    def below_mix(self) -> list[str]:
        """Names of the points below random routing at the same cost."""
        pairs = zip(self.series.points, self.series.versus_mix, strict=True)
        return [point.name for point, versus in pairs if versus.mean < -ROUNDING]

    def hull(self, cost: float) -> float:
        """Accuracy of the best random routing among experts at a cost."""
        costs, accuracy = zip(*((figures.cost, figures.accuracy) for figures in self.experts), strict=True)
        return float(random_mix_hull(costs, np.array(accuracy), cost))

    def to_dict(self) -> dict[str, Any]:
        experts = zip(self.expert_names, self.experts, strict=True)
        return {
            "operating_point": self.default,
            "reference": self.expert_names[self.reference],
            "front": self.series.to_dict()["points"],
            "experts": [{"name": name, **figures.to_dict()} for name, figures in experts],
            "oracle": self.oracle.to_dict(),
            "baselines": {name: series.to_dict() for name, series in self.baselines.items()},
            "hypervolumes": dict(self.hypervolumes),
            "gap_closed": self.gap_closed,
            "routing_auroc": dict(self.auroc),
            "search_to_report_drop": self.drop,
            "below_random_mix": self.below_mix,
            "by_class": self.by_class and self.by_class.to_dict(),
            **({} if self.by_group is None else {"by_group": self.by_group.to_dict()}),
            "warnings": list(self.warnings),
            **({"certainty": [one.to_dict() for one in self.certainty]} if self.certainty else {}),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row for each expert alone, the oracle, and each point of the front and of each baseline."""
        kinds: list[tuple[str, str, Figures, Difference | None]] = [
            ("expert", name, figures, None) for name, figures in zip(self.expert_names, self.experts, strict=True)
        ]
        kinds.append(("oracle", "oracle", self.oracle, None))
        for kind, series in {"front": self.series, **self.baselines}.items():
            for point, versus in zip(series.points, series.versus_reference, strict=True):
                kinds.append((kind, point.name, cast(Figures, point.report), versus))
        reference = self.experts[self.reference]
        return [
            {
                "kind": kind,
                "name": name,
                figures.measure: figures.accuracy,
                "low": figures.interval[0],
                "high": figures.interval[1],
                **figures.costs,
                "saved": saved_share(figures, reference),
                "difference": versus and versus.mean,
                "standard_error": versus and versus.standard_error,
                "images": figures.samples,
            }
            for kind, name, figures, versus in kinds
        ]

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text(whole=True)

    def text(self, *, whole: bool = False, with_warnings: bool = True) -> str:
        """The evaluation as text: a summary, or everything; commands leave out the warnings, which are logged, too."""
        warnings = [f"Warning: {warning}" for warning in self.warnings if with_warnings]
        if whole:
            compared = [f"\n{one}" for one in (self.by_class, self.by_group) if one is not None]
            return "\n".join([self._whole_table(), *self._notes(), *compared, *warnings])
        return "\n".join([short_table(self), "", *warnings, *sentences(self)])

    def _whole_table(self) -> str:
        reference, name_of_it = self.experts[self.reference], self.expert_names[self.reference]
        header = ["", *figure_header(reference), *self.expert_names]
        header += ["saved", f"vs {name_of_it}", "95 % interval", "vs mix"]

        def saved(figures: Figures) -> str:
            return f"{100 * saved_share(figures, reference):.1f} %"

        def cells(name: str, series: Series, index: int) -> list[str]:
            figures, versus = series.figures[index], series.versus_reference[index]
            low, high = versus.interval
            return [
                name,
                *figure_cells(figures),
                saved(figures),
                f"{100 * versus.mean:+.2f} ± {100 * versus.standard_error:.2f}",
                f"{100 * low:+.2f} .. {100 * high:+.2f}",
                f"{100 * series.versus_mix[index].mean:+.2f}",
            ]

        rows = [
            [name, *figure_cells(f), saved(f), "", "", ""]
            for name, f in zip(self.expert_names, self.experts, strict=True)
        ]
        rows.append(["oracle", *figure_cells(self.oracle), saved(self.oracle), "", "", ""])
        rows += [cells(name, series, series.default) for name, series in self.baselines.items()]
        points = self.series.points
        shown = evenly_spaced(len(points), SHOWN, [self.series.default])
        for index, point in ((index, points[index]) for index in shown):
            rows.append(cells(f"{point.name}{' *' if point.name == self.default else ''}", self.series, index))
        hidden = (
            [f"{len(points)} operating points, of which {len(shown)} are shown."] if len(shown) < len(points) else []
        )
        return "\n".join([format_table(header, rows), *hidden])

    def _notes(self) -> list[str]:
        measure, reference = self.experts[0].measure, self.expert_names[self.reference]
        notes = [
            f"{self.experts[0].samples} images; * default operating point; differences in points of {measure} on the "
            "same images, ± standard error.",
        ]
        if self.baselines:
            notes.append("Each baseline is shown at the point that the same rule chooses on the search images.")
        volumes = ", ".join(f"{name} {100 * value:.3f}" for name, value in self.hypervolumes.items())
        notes.append(f"Area under random mixes of points, in % of cost x {measure}: {volumes}.")
        if self.gap_closed is not None:
            notes.append(f"The front closes {100 * self.gap_closed:.1f} % of the gap from random mixes to the oracle.")
        if self.auroc:
            values = ", ".join(f"{name} {value:.3f}" for name, value in self.auroc.items())
            notes.append(f"Routing AUROC of {self.default}: {values}.")
        if self.certainty:
            notes.append(f"Confidence of {'; '.join(map(str, self.certainty))}.")
        if self.drop is not None:
            gap = f"{100 * abs(self.drop):.2f} points {'smaller' if self.drop >= 0 else 'larger'}"
            notes.append(f"The lead over {reference} is {gap} on these images than stated, as a mean over the front.")
        if self.default == BEST_BELOW_REFERENCE:
            notes.append(
                f"No point is lossless on the search images: the default, {self.default}, is the most accurate one "
                f"that is cheaper than {reference}."
            )
        if self.below_mix:
            notes.append(f"Below a random mix of experts at the same cost: {', '.join(self.below_mix)}.")
        if any(figures.approximate for figures in self.series.figures):
            notes.append("Scores were cut to the largest: figures of points that decide or mix are approximate.")
        return notes


def evaluate_front(
    front: Front,
    heads: Mapping[str, Sequence[Head]],
    predictions: Predictions,
    default: str,
    baselines: Mapping[str, tuple[Sequence[Candidate], int]] | None = None,
    select_experts: Sequence[Figures | None] = (),
    reference: int | None = None,
    warnings: Sequence[str] = (),
    label_names: Mapping[int, str] | None = None,
    groups: Groups | None = None,
    temperature: float | None = None,
) -> Evaluation:
    """Measure operating points, experts, baselines and the oracle on images that neither fitted nor chose anything.

    Args:
        front: operating points of the pool that made the predictions.
        heads: heads of each point, by its name.
        predictions: predictions for the report images.
        default: name of the default operating point.
        baselines: by name, candidates and the index of the one that the default rule chooses.
        select_experts: figures of the experts on the search images, for the generalisation gap.
        reference: pool index of the expert that others are compared with; default: the last.
        warnings: sentences to show.
        label_names: names of the labels, for the comparison class by class.
        groups: groups of the images to compare by, too.
        temperature: that of the reference expert, fitted to the search images.
    """
    experts = evaluate_experts(predictions)
    names, default = [point.name for point in front], front.find(default).name
    reference = predictions.num_experts - 1 if reference is None else reference
    own = [(point, heads.get(point.name, ())) for point in front]
    outcomes = _outcomes(own, predictions)
    series = _measure([point for point, _ in own], outcomes, names.index(default), predictions, reference)
    compared = {}
    for name, (candidates, index) in (baselines or {}).items():
        found = _outcomes([(candidate.point, candidate.heads) for candidate in candidates], predictions)
        points = [candidate.point for candidate in candidates]
        compared[name] = _measure(points, found, index, predictions, reference)
    figures = tuple(one.figures for one in experts)
    oracle = evaluate_oracle(predictions).figures
    volumes = _volumes({"front": series, **compared}, figures, oracle)
    chosen = front.find(default)
    auroc = routing_auroc(chosen, heads.get(default, ()), predictions)
    selected = select_experts[reference] if len(select_experts) else None
    drops = [
        point.select.accuracy - selected.accuracy - versus.mean
        for point, versus in zip(series.points, series.versus_reference, strict=True)
        if selected and point.select and point.recipe != "static"
    ]
    first = chosen.members[0]
    called = default, front.expert_names[reference], front.expert_names[first]
    sides = outcomes[names.index(default)], experts[reference]
    classes = Groups("class", predictions.targets, label_names or {})
    return Evaluation(
        series,
        front.expert_names,
        figures,
        oracle,
        compared,
        volumes,
        {front.expert_names[expert]: value for expert, value in auroc.items()},
        sum(drops) / len(drops) if drops else None,
        reference,
        tuple(warnings),
        compare_groups(classes, *sides, called, first) if predictions.measure == ACCURACY else None,
        None if groups is None else compare_groups(groups, *sides, called, first),
        measure_certainty(
            chosen, heads.get(default, ()), predictions, reference, front.expert_names[reference], temperature
        ),
    )


def _volumes(series: Mapping[str, Series], experts: Sequence[Figures], oracle: Figures) -> dict[str, float]:
    """The areas of `Evaluation.hypervolumes`."""
    corner = (experts[-1].cost, experts[0].accuracy)
    reports = {name: measured.figures for name, measured in series.items()}
    reports |= {"random-mix": tuple(experts), "oracle": (oracle, *experts)}
    volumes = {
        name: hull_hypervolume([f.cost for f in several], [f.accuracy for f in several], corner)
        for name, several in reports.items()
    }
    return volumes | {"static": hypervolume([f.cost for f in experts], [f.accuracy for f in experts], corner)}


def _outcomes(points: Sequence[tuple[OperatingPoint, Sequence[Head]]], predictions: Predictions) -> list[Outcome]:
    return [evaluate_point(point, heads, predictions) for point, heads in points]


def _measure(
    points: Sequence[OperatingPoint],
    outcomes: Sequence[Outcome],
    default: int,
    predictions: Predictions,
    reference: int,
) -> Series:
    bootstrap = Bootstrap(predictions.correct().numpy(), predictions.costs.of_experts, reference)
    differences = [bootstrap.differences(one.correct.numpy(), one.costs.numpy()) for one in outcomes]
    versus_reference, versus_mix = zip(*differences, strict=True)
    measured = (replace(point, report=one.figures) for point, one in zip(points, outcomes, strict=True))
    answers = tuple(one.answers for one in outcomes if one.answers is not None)  # as all points have
    return Series(tuple(measured), versus_reference, versus_mix, default, answers)
