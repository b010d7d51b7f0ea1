"""One label space for all: labels of experts and data sets are aligned by index, by name only if the user asks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

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
            f"{first_difference(labels, other_labels)}. Experts must share one label space: have the labels that all "
            f"share found by their names, {BY_NAME}, or give a `label_map` to the one with more labels (in Python, or "
            "in the mapping of an expert in a --config file)"
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


def match_by_name(labels: Labels, others: Labels) -> dict[int, int]:
    """Find the labels that two lists share, by their names.

    WordNet ids match names by way of timm's `ImageNetInfo`. A name that occurs equally often in both is paired in
    order. What is left is matched by aliases (the parts of "tench, Tinca tinca") that are unique in their list.

    Args:
        labels, others: names by index.

    Returns:
        For each shared label the index among `labels`, and that among `others`.
    """
    ours, theirs = ({index: _normal(name) for index, name in part.items()} for part in (labels, others))
    found: dict[int, int] = {}
    if any(all(map(_is_wordnet_id, part.values())) for part in (ours, theirs)):
        (our_ids, ours), (their_ids, theirs) = _with_wordnet_ids(ours), _with_wordnet_ids(theirs)
        found = _paired(our_ids, their_ids)
    found |= _paired(
        {index: name for index, name in ours.items() if index not in found},
        {index: name for index, name in theirs.items() if index not in found.values()},
    )
    by_alias, other_alias = _aliases(ours), _aliases(theirs)
    for index in ours.keys() - found.keys():
        matches = {other_alias[alias] for alias, owner in by_alias.items() if owner == index and alias in other_alias}
        if len(matches) == 1 and not matches & set(found.values()):
            found[index] = matches.pop()
    return dict(sorted(found.items()))


def _paired(ours: Labels, theirs: Labels) -> dict[int, int]:
    """The labels whose names stand equally often in both, in order."""
    mine, yours = _places(ours), _places(theirs)
    pairs = ((mine[name], yours[name]) for name in mine if len(mine[name]) == len(yours.get(name, ())))
    return {index: other for indices, others in pairs for index, other in zip(indices, others, strict=True)}


def _with_wordnet_ids(names: Labels) -> tuple[Labels, Labels]:
    """The WordNet ids of labels, as far as ImageNet-1k tells them from names and their order; and their names."""
    from timm.data import ImageNetInfo

    described = cast("dict[str, str]", ImageNetInfo().label_descriptions(as_dict=True))
    if all(map(_is_wordnet_id, names.values())):
        return names, {index: _normal(described.get(name, name)) for index, name in names.items()}
    of_name = _places(dict(enumerate(_normal(name) for name in described.values())))
    ids: Labels = {}
    known = list(described)
    for name, indices in _places(names).items():
        if len(indices) == len(of_name.get(name, ())):
            ids |= {index: known[place] for index, place in zip(indices, of_name[name], strict=True)}
    return ids, names


def _is_wordnet_id(name: str) -> bool:
    return re.fullmatch(r"n\d{8}", name) is not None


def _places(names: Labels) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, name in names.items():
        places.setdefault(name, []).append(index)
    return places


def _aliases(names: Labels) -> dict[str, int]:
    """The index of each alias that only one label has."""
    owners: dict[str, set[int]] = {}
    for index, name in names.items():
        for alias in {part.strip() for part in name.split(",")}:
            owners.setdefault(alias, set()).add(index)
    return {alias: indices.pop() for alias, indices in owners.items() if len(indices) == 1}


def places_by_name(
    labels: Labels, others: Labels, title: str, advice: str, wanted: Sequence[int] | None = None
) -> list[int]:
    """Find the index of each label among others by its name (see `match_by_name`).

    Args:
        labels: the labels to find.
        others: where to find them; it may have more labels.
        title: what the labels belong to, for the message.
        advice: what the user can do, for the message.
        wanted: indices of the labels that must be found; default: all.

    Raises:
        PertinenceError: no other label, or several, have the name of a label.
    """
    found, indices = match_by_name(labels, others), list(labels) if wanted is None else wanted
    unknown = [labels[index] for index in indices if index not in found]
    if unknown:
        raise PertinenceError(
            f"{title}: label_map='by_name' cannot place {len(unknown)} labels, the first of them {unknown[0]!r}: "
            f"{advice}"
        )
    return [found[index] for index in indices]


def resolve_label_map(
    label_map: list[int] | str | None, labels: Labels, pool_labels: Labels, name: str
) -> list[int] | None:
    """The index of each label of the pool among `labels`; "by_name" looks the names up (see `match_by_name`).

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
