"""One label space for all experts: labels are aligned by index, and by name only if the user asks for it."""

from __future__ import annotations

import re
from typing import Any

from ..utils.errors import PertinenceError


Labels = dict[int, str]
"""Names by index."""
BY_NAME = "label_map='by_name' (--label-map by_name)"
"""How the user asks for labels to be matched by name, in Python and as a flag."""


def check_same_labels(
    name: str, labels: Labels, other_name: str, other_labels: Labels, label_map: list[int] | None = None
) -> None:
    """Refuse two label spaces that cannot be the same: different counts, or the same names in another order.

    Names that merely differ pass, since checkpoints spell them differently ("tench" and "tench, Tinca tinca"), and so
    do generic ones (`LABEL_3`).

    Raises:
        PertinenceError: the label spaces differ; the message names the first difference and, for another order, the
            `label_map` that corrects it.
    """
    if label_map is None and len(labels) != len(other_labels):
        raise PertinenceError(
            f"{name!r} has {len(labels)} labels and {other_name!r} has {len(other_labels)}: "
            f"{first_difference(labels, other_labels)}. Experts must share one label space; give a `label_map` to the "
            "one with more labels (in Python, or in the mapping of an expert in a --config file)"
        )
    if label_map is not None or is_generic(labels) or is_generic(other_labels):
        return
    if in_another_order(labels, other_labels):
        ours = _normalised(labels)
        order = [ours.index(label) for label in _normalised(other_labels)]
        shown = str(order) if len(order) <= 20 else f"[{', '.join(map(str, order[:8]))}, ...]"
        raise PertinenceError(
            f"{name!r} has the labels of {other_name!r} in another order: {first_difference(labels, other_labels)}. "
            f"Give {name!r} label_map={shown}, which is what label_map='by_name' computes"
        )


def in_another_order(labels: Labels, other_labels: Labels) -> bool:
    """Whether two label spaces have the same names in different orders."""
    ours, theirs = _normalised(labels), _normalised(other_labels)
    return ours != theirs and sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours)


def places_by_name(labels: Labels, others: Labels, title: str, advice: str) -> list[int]:
    """Find the index of each label among others by its name.

    Args:
        labels: the labels to find.
        others: where to find them; it may have more labels.
        title: what the labels belong to, for the message.
        advice: what the user can do, for the message.

    Raises:
        PertinenceError: no other label, or several, have the name of a label.
    """
    places: dict[str, list[int]] = {}
    for index, name in enumerate(_normalised(others)):
        places.setdefault(name, []).append(index)
    found = [places.get(_normal(name), []) for name in labels.values()]
    unknown = [name for name, indices in zip(labels.values(), found, strict=True) if len(indices) != 1]
    if unknown:
        raise PertinenceError(
            f"{title}: label_map='by_name' cannot place {len(unknown)} labels, the first of them {unknown[0]!r}: "
            f"{advice}"
        )
    return [indices[0] for indices in found]


def resolve_label_map(
    label_map: list[int] | str | None, labels: Labels, pool_labels: Labels, name: str
) -> list[int] | None:
    """The index of each label of the pool among `labels`; "by_name" looks the names up.

    Raises:
        PertinenceError: the map is not one valid index for each label of the pool, or a name is not found.
    """
    if label_map is None:
        return None
    if label_map == "by_name":
        return places_by_name(
            dict(sorted(pool_labels.items())), labels, repr(name), "write the map as a list of indices"
        )
    if (
        not isinstance(label_map, (list, tuple))
        or not all(isinstance(i, int) and 0 <= i < len(labels) for i in label_map)
        or len(label_map) != len(pool_labels)
        or len(set(label_map)) != len(label_map)
    ):
        raise PertinenceError(
            f"{name!r}: label_map must list {len(pool_labels)} different indices from 0 to {len(labels) - 1}, one "
            f"for each label of the pool, got {str(label_map)[:80]}"
        )
    return list(label_map)


def is_generic(labels: Labels) -> bool:
    return all(re.fullmatch(r"LABEL_\d+", str(label)) for label in labels.values())


def _normalised(labels: Labels) -> list[str]:
    return [_normal(labels[index]) for index in range(len(labels))]


def _normal(name: Any) -> str:
    return str(name).casefold().replace("_", " ").strip()


def first_difference(labels: Labels, other_labels: Labels) -> str:
    """Describe the first difference between two label spaces."""
    for index in range(max(len(labels), len(other_labels))):
        ours, theirs = labels.get(index), other_labels.get(index)
        if ours != theirs:
            return f"label {index} is {ours!r} here and {theirs!r} there"
    return "no label differs"
