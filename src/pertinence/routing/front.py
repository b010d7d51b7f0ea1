"""Operating points and the Pareto front: the trained dispatchers of a model, and the figures measured for each."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

from ..utils.errors import MALFORMED, PertinenceError, explain, shown
from ..utils.tables import Tabular
from ..utils.validation import is_name, is_number
from .budgets import Budget, takes_budget
from .certainty import Certainty
from .costs import STEM
from .front_table import front_rows, short_table, whole_table
from .metrics import Figures, Latency
from .names import FASTEST, MAX_POINTS, MOST_ACCURATE
from .registry import EVIDENCE
from .unlike import SearchEntropies


SHOWN_NAMES = 100


@dataclass(frozen=True)
class Stage:
    """The decision (deferral rule) after expert `after` has run.

    Attributes:
        after: pool index of the expert that ran last; -1 (`STEM`): the separate stem, before any expert.
        evidence: the kind of evidence that its head reads: "features" (pooled features of that expert), "mix"
            (statistics of the mixture), "both", or a registered one (see `routing.evidence`).
        evidence_version: version of that kind.
        mixing: weight of the log-probabilities of each member up to `after`; None: that expert's own logits.
    """

    after: int
    evidence: str = "mix"
    mixing: tuple[float, ...] | None = None
    evidence_version: int = 1

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of `Known` that its decision needs."""
        return EVIDENCE.require(self.evidence, "a stage").reads

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in format 1."""
        version = {} if self.evidence_version == 1 else {"evidence_version": self.evidence_version}
        mixing = None if self.mixing is None else list(self.mixing)
        return {"after": self.after, "evidence": self.evidence, "mixing": mixing, **version}

    def check_evidence(self, where: str) -> None:
        """Raise `PertinenceError` unless its kind of evidence is registered in the recorded version."""
        found = EVIDENCE.require(self.evidence, where)
        if found.version != self.evidence_version:
            raise PertinenceError(
                f"{where}: its head was fitted to version {shown(self.evidence_version)} of the evidence "
                f"{self.evidence!r}, and version {found.version} is here: install what it was searched with"
            )


@dataclass(frozen=True)
class OperatingPoint:
    """One trained dispatcher and its measured figures.

    Attributes:
        name: unique within its front.
        recipe: how it was made: "paper", "cascade", "thresholds", "static" or a registered recipe.
        members: pool indices, rising; the first runs on every image.
        stages: in order of `after`; an image exits at a member without a stage, and the logits of that member are the
            answer. `paper` has one stage, `cascade` one after every member (the last only mixes, as it has nothing to
            decide), and a single expert none.
        select: figures on the search images; only these choose.
        report: figures on images that neither fitted nor chose anything.
        latency: measured by `pertinence benchmark`, for each device and batch size.
        certainty: how probable it is that its answers are right, fitted to the search images; None in older models.
        entropies: of the answers to the search images, which tell images that are unlike them; None: not measured.
    """

    name: str
    recipe: str
    members: tuple[int, ...]
    stages: tuple[Stage, ...] = ()
    select: Figures | None = None
    report: Figures | None = None
    latency: tuple[Latency, ...] = ()
    certainty: Certainty | None = None
    entropies: SearchEntropies | None = None

    @cached_property
    def decisions(self) -> tuple[Stage, ...]:
        """The stages that decide: those with a later member to defer to."""
        return tuple(stage for stage in self.stages if stage.after < self.members[-1])

    @cached_property
    def decision_after(self) -> dict[int, int]:
        """Positions in `decisions`, by the expert (or `STEM`) that they follow."""
        return {stage.after: position for position, stage in enumerate(self.decisions)}

    @cached_property
    def stage_after(self) -> dict[int, Stage]:
        """The stages, by the expert (or `STEM`) that they follow."""
        return {stage.after: stage for stage in self.stages}

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Pool indices in the order in which they run: a separate stem (`STEM`), then the members."""
        return ((STEM,) if STEM in self.stage_after else ()) + self.members

    @cached_property
    def mixes(self) -> bool:
        """Whether any stage mixes the outputs of several experts."""
        return any(stage.mixing is not None for stage in self.stages)

    @cached_property
    def reads_features_of(self) -> tuple[int, ...]:
        """The experts (or `STEM`) whose pooled features a decision reads."""
        return tuple(stage.after for stage in self.decisions if "features" in stage.reads)

    @property
    def figures(self) -> dict[str, Figures]:
        """What was measured, by the kind of the images: "search" (`select`), which chose it, and "report"."""
        known = {"search": self.select, "report": self.report}
        return {kind: figures for kind, figures in known.items() if figures is not None}

    def validate(self, num_experts: int) -> None:
        """Raise `PertinenceError` if this cannot be an operating point of a pool of `num_experts`."""
        where = f"operating point {shown(self.name)}"
        if not is_name(self.name) or not is_name(self.recipe):
            raise PertinenceError(f"{where}: name and recipe must be a line of text, got recipe {shown(self.recipe)}")
        for figures in self.figures.values():
            figures.check(where, num_experts)
        for latency in self.latency:
            latency.check(where)
        if self.certainty is not None:
            self.certainty.check(where, len(self.members))
        members = shown(list(self.members))
        if not self.members or list(self.members) != sorted(set(self.members)):
            raise PertinenceError(f"{where}: members {members} must be rising pool indices, at least one")
        if self.members[0] < 0 or self.members[-1] >= num_experts:
            raise PertinenceError(f"{where}: members {members} do not fit a pool of {num_experts} experts")
        after = [stage.after for stage in self.stages]
        if after != sorted(set(after)) or not set(after) <= {STEM, *self.members}:
            raise PertinenceError(
                f"{where}: stages follow {shown(after)}, but each must follow one of the members, in order"
            )
        if len(self.members) > 1 and not {STEM, self.members[0]} & set(after):
            raise PertinenceError(f"{where}: there is no stage after its first member {self.members[0]}")
        for stage in self.stages:
            stage.check_evidence(where)
            if stage.after == STEM:
                if stage.reads != ("features",) or stage.mixing is not None:
                    raise PertinenceError(f"{where}: a stem answers nothing, so its stage can only read its features")
                continue
            expected = self.members.index(stage.after) + 1
            if not all(map(is_number, stage.mixing or ())):
                raise PertinenceError(f"{where}: the stage after expert {stage.after} has weights that are not finite")
            if stage.mixing is not None and len(stage.mixing) != expected:
                raise PertinenceError(
                    f"{where}: the stage after expert {stage.after} has {len(stage.mixing)} mixing weights, "
                    f"expected {expected}, one for each member up to it"
                )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OperatingPoint:
        try:
            stages = tuple(
                Stage(
                    after=int(stage["after"]),
                    evidence=stage.get("evidence", "mix"),
                    mixing=None if stage.get("mixing") is None else tuple(float(w) for w in stage["mixing"]),
                    evidence_version=stage.get("evidence_version", 1),
                )
                for stage in values["stages"]
            )
            figures = {
                key: Figures.from_dict(values[key]) if values.get(key) else None for key in ("select", "report")
            }
            latency = tuple(Latency.from_dict(entry) for entry in values.get("latency") or ())
            members = tuple(int(i) for i in values["members"])
            certain = None if values.get("certainty") is None else Certainty.from_dict(values["certainty"])
            entropies = SearchEntropies.from_dict(values["entropies"]) if values.get("entropies") else None
            return cls(
                values["name"],
                values["recipe"],
                members,
                stages,
                **figures,
                latency=latency,
                certainty=certain,
                entropies=entropies,
            )
        except MALFORMED as error:
            if isinstance(error, PertinenceError):
                raise
            raise PertinenceError(f"an entry of `front` is malformed ({explain(error)})") from error

    def to_dict(self) -> dict[str, Any]:
        latency = {"latency": [entry.to_dict() for entry in self.latency]} if self.latency else {}
        entropies = {} if self.entropies is None else {"entropies": self.entropies.to_dict()}
        return {
            "name": self.name,
            "recipe": self.recipe,
            "members": list(self.members),
            "stages": [stage.to_dict() for stage in self.stages],
            "select": self.select and self.select.to_dict(),
            "report": self.report and self.report.to_dict(),
            **latency,
            **({} if self.certainty is None else {"certainty": self.certainty.to_dict()}),
            **entropies,
        }

    def __str__(self) -> str:
        """One line: its name, and what was measured on which images."""
        measured = [f"{one} on {one.samples} {kind} images" for kind, one in self.figures.items()]
        return f"{self.name}: {'; '.join(measured) or 'not measured'}"

    def replaced_latency(self, measured: Sequence[Latency]) -> OperatingPoint:
        """A copy with new measurements, which replace those of the same device and batch size."""
        new = {(entry.device, entry.batch_size) for entry in measured}
        kept = [entry for entry in self.latency if (entry.device, entry.batch_size) not in new]
        return replace(self, latency=(*kept, *measured))


class Front(Tabular, Sequence[OperatingPoint]):
    """The Pareto front: operating points by rising cost; prints as a table of a few of them, and its `repr` has all.

    Args:
        points: operating points of different names.
        expert_names: names of the experts of the pool.
        default: name of the default operating point, which the table marks.
        reference_cost: mean cost of the reference expert, of which the table shows what is saved.
    """

    def __init__(
        self,
        points: Iterable[OperatingPoint],
        expert_names: Sequence[str],
        default: str | None = None,
        reference_cost: float | None = None,
    ):
        self._points = tuple(points)
        self.expert_names = tuple(expert_names)
        self.reference_cost = reference_cost
        if len(self._points) > MAX_POINTS:
            raise PertinenceError(f"a front has at most {MAX_POINTS} operating points, got {len(self._points)}")
        self._by_name: dict[str, OperatingPoint] = {}
        for point in self._points:
            point.validate(len(self.expert_names))
            if point.name in self._by_name:
                raise PertinenceError(f"two operating points are called {point.name!r}: names must be unique")
            self._by_name[point.name] = point
        figures = [one for point in self._points for one in point.figures.values()]
        if len({(one.measure, one.objective, *sorted(one.costs)) for one in figures}) > 1:
            raise PertinenceError("all figures of a front must have one measure, and the same kinds of cost")
        self.default = self.find(default).name if default is not None else None

    @overload
    def __getitem__(self, index: int) -> OperatingPoint: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[OperatingPoint, ...]: ...

    def __getitem__(self, index: int | slice) -> OperatingPoint | tuple[OperatingPoint, ...]:
        return self._points[index]

    def __len__(self) -> int:
        return len(self._points)

    def marked(self, default: str | None) -> Front:
        """The same front with another default; None: the last point."""
        twin = copy.copy(self)
        twin.default = self.find(default).name
        return twin

    def find(self, name: str | None) -> OperatingPoint:
        """The operating point of a name; `fastest` and `most-accurate` always exist. None: the last point.

        Raises:
            PertinenceError: no point has this name.
        """
        if name is None and self._points:
            return self._points[-1]
        if isinstance(name, str) and name in self._by_name:
            return self._by_name[name]
        if name == FASTEST and self._points:
            return self._points[0]
        if name == MOST_ACCURATE and self._points:
            return max(self._points, key=lambda point: point.select.accuracy if point.select else 0.0)
        known = ", ".join(point.name for point in self._points[:SHOWN_NAMES])
        more = ", ..." if len(self) > SHOWN_NAMES else ""
        raise PertinenceError(f"there is no operating point {shown(name)}; this model has: {known}{more}")

    @takes_budget(Budget)
    def choose(self, budget: Budget) -> OperatingPoint:
        """Choose the operating point for a budget, by the figures on the search images (`select`).

        Args:
            budget: one of the fields of [`Budget`] that does not refer to the reference expert, as a keyword:
                `front.choose(gmacs=1.5)`.

        Raises:
            PertinenceError: no point meets the budget; the message names the nearest one.
        """
        return budget.choose(self)

    def to_list(self) -> list[dict[str, Any]]:
        return [point.to_dict() for point in self._points]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each point, with its figures on the search images (`select_`) and on the report images."""
        return front_rows(self)

    def __str__(self) -> str:
        return short_table(self)

    def __repr__(self) -> str:
        return whole_table(self)
