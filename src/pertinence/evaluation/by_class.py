"""Class by class, and group by group: where an operating point loses more than chance allows.

A mean over all images hides whom routing harms. Here a point is compared with the reference expert on the images of
each class, or of each value of a column, by an exact paired test.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binom, false_discovery_control

from ..data.columns import Groups
from ..routing.metrics import as_plain, format_table
from ..utils.names import shortened
from ..utils.tables import Tabular
from .intervals import paired_interval
from .outcomes import Outcome


FALSE_DISCOVERY_RATE = 0.05
"""Expected share of false ones among the classes that are said to lose."""
FEWEST = math.ceil(-math.log2(FALSE_DISCOVERY_RATE))
"""With fewer images on which only one of the two is right, no p-value of the sign test reaches the rate."""
SHOWN, NAMED, NAME_WIDTH = 24, 3, 40
"""Largest numbers of rows in the table and of names in the sentence, and of characters of a name."""


@dataclass(frozen=True)
class GroupFigures:
    """The images of one class or group.

    Attributes:
        name: name of the class or group.
        images: number of images.
        accuracy, reference_accuracy: of the operating point, and of the reference expert.
        losses, wins: number of images that only the reference expert, and that only the point gets right.
        interval: 95 % interval of the difference of accuracy, see `intervals.paired_interval`.
        p_value: one-sided sign test (exact McNemar test) of the hypothesis that the point does not lose.
        q_value: the p-value adjusted for the number of groups (Benjamini and Hochberg 1995); None: the two disagree on
            too few images for any answer, so the group is not tested.
        first_share: share of the images that the first member of the point answers.
    """

    name: str
    images: int
    accuracy: float
    reference_accuracy: float
    losses: int
    wins: int
    interval: tuple[float, float]
    p_value: float
    q_value: float | None
    first_share: float

    @property
    def difference(self) -> float:
        """Accuracy of the point minus that of the reference expert."""
        return (self.wins - self.losses) / self.images

    @property
    def loses(self) -> bool:
        """Whether it loses more than chance allows."""
        return self.q_value is not None and self.q_value <= FALSE_DISCOVERY_RATE


@dataclass(frozen=True)
class GroupComparison(Tabular):
    """An operating point compared with the reference expert, group by group; prints as a table.

    Attributes:
        by: "class", or the column whose values are the groups.
        operating_point: name of the point.
        reference: name of the reference expert.
        first: name of the first member of the point, whose answers are the cheap path.
        first_share: share of all images that it answers.
        groups: the largest loss first.
    """

    by: str
    operating_point: str
    reference: str
    first: str
    first_share: float
    groups: tuple[GroupFigures, ...]

    @property
    def losing(self) -> list[GroupFigures]:
        """The groups that lose more than chance allows."""
        return [group for group in self.groups if group.loses]

    @property
    def num_tested(self) -> int:
        return sum(group.q_value is not None for group in self.groups)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each group."""
        return [
            {self.by: group.name}
            | {key: value for key, value in asdict(group).items() if key not in ("name", "interval")}
            | {"difference": group.difference, "low": group.interval[0], "high": group.interval[1]}
            | {"loses": group.loses}
            for group in self.groups
        ]

    def to_dict(self) -> dict[str, Any]:
        groups = [{**asdict(group), "difference": group.difference, "loses": group.loses} for group in self.groups]
        plain: dict[str, Any] = as_plain(
            {**vars(self), "groups": groups, "false_discovery_rate": FALSE_DISCOVERY_RATE}
        )
        return plain

    @property
    def sentence(self) -> str:
        """Which groups lose more than chance allows, or that none does."""
        kind, losing = "classes" if self.by == "class" else f"groups by {self.by}", self.losing
        few = len(self.groups) - self.num_tested
        if not self.num_tested:
            return f"None of {few} {kind} has enough images to tell whether it loses against {self.reference}."
        untold = f"; of {few} more there are too few images to tell" if few else ""
        if not losing:
            return f"None of {self.num_tested} {kind} loses more than chance allows against {self.reference}{untold}."
        named = ", ".join(describe_loss(group) for group in losing[:NAMED])
        more = f" and {len(losing) - NAMED} more" if len(losing) > NAMED else ""
        count = sum(group.images for group in losing)
        share = sum(group.first_share * group.images for group in losing) / count
        return (
            f"{len(losing)} of {self.num_tested} {kind} {'loses' if len(losing) == 1 else 'lose'} more than chance "
            f"allows against {self.reference}: {named}{more}{untold}. {self.first} alone answers "
            f"{100 * share:.0f} % of their images, and {100 * self.first_share:.0f} % of all."
        )

    def __str__(self) -> str:
        header = [self.by, "images", self.operating_point, self.reference, "difference", "95 % interval"]
        header += ["losses", "wins", "p-value", "adjusted", f"{self.first} alone"]
        rows = []
        for group in self.groups[:SHOWN]:
            low, high = group.interval
            rows.append(
                [
                    shortened(group.name, NAME_WIDTH) + (" !" if group.loses else ""),
                    f"{group.images}",
                    f"{100 * group.accuracy:.2f} %",
                    f"{100 * group.reference_accuracy:.2f} %",
                    f"{100 * group.difference:+.2f}",
                    f"{100 * low:+.2f} .. {100 * high:+.2f}",
                    f"{group.losses}",
                    f"{group.wins}",
                    f"{group.p_value:.4f}",
                    "" if group.q_value is None else f"{group.q_value:.4f}",
                    f"{100 * group.first_share:.0f} %",
                ]
            )
        notes = [
            f"! loses more than chance allows (false discovery rate {100 * FALSE_DISCOVERY_RATE:g} %); without an "
            f"adjusted p-value: not tested, as the two disagree on fewer than {FEWEST} images."
        ]
        if len(self.groups) > SHOWN:
            notes.append(f"{SHOWN} of {len(self.groups)} are shown, the largest losses first; --json has all.")
        return "\n".join([format_table(header, rows), *notes])


def compare_groups(
    groups: Groups, point: Outcome, reference: Outcome, names: tuple[str, str, str], first: int
) -> GroupComparison:
    """Compare an operating point with the reference expert on the images of each group.

    A class on which the two disagree rarely cannot show a loss whatever its images say, and is not tested: this keeps
    the false discovery rate, as the test is conditional on how often they disagree (Gilbert 2005, "A modified false
    discovery rate multiple-comparisons procedure for discrete data, applied to human immunodeficiency virus
    genetics"). Groups share no images, so their tests are independent.

    Args:
        groups: the group of each image.
        point, reference: outcomes on the same images; that of a point says which expert answered.
        names: names of the point, of the reference expert, and of the first member of the point.
        first: pool index of that member.
    """
    assert point.last is not None  # as `evaluate_point` gives it
    codes = groups.codes.numpy()
    present, place = np.unique(codes, return_inverse=True)

    def counts(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, len(present)).astype(np.int64)

    ours, theirs = point.correct.numpy(), reference.correct.numpy()
    is_first = (point.last == first).numpy()
    images, right, expected = counts(np.ones(len(codes))), counts(ours), counts(theirs)
    losses, wins, answered = counts(theirs & ~ours), counts(ours & ~theirs), counts(is_first)
    p_values = binom.sf(losses - 1, losses + wins, 0.5)
    is_tested = losses + wins >= FEWEST
    q_values = np.full(len(present), np.nan)
    if is_tested.any():
        q_values[is_tested] = false_discovery_control(p_values[is_tested])
    found = [
        GroupFigures(
            groups.names.get(code, str(code)),
            count,
            right[row].item() / count,
            expected[row].item() / count,
            losses[row].item(),
            wins[row].item(),
            paired_interval(wins[row].item(), losses[row].item(), count),
            p_values[row].item(),
            q_values[row].item() if is_tested[row] else None,
            answered[row].item() / count,
        )
        for row, (code, count) in enumerate(zip(present.tolist(), images.tolist(), strict=True))
    ]
    found.sort(key=lambda group: (group.difference, group.p_value, group.name))
    return GroupComparison(groups.by, *names, float(is_first.mean()), tuple(found))


def describe_loss(group: GroupFigures) -> str:
    """Name, difference and interval of a group."""
    low, high = (100 * bound for bound in group.interval)
    name = shortened(group.name, NAME_WIDTH)
    return f"{name} {100 * group.difference:+.1f} points ({low:+.1f} .. {high:+.1f}, {group.images} images)"
