"""One label space for all: labels of experts and data sets are aligned by index, by name only if the user asks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers.utils import logging

from ..utils.errors import PertinenceError


logger = logging.get_logger(__name__)

Labels = dict[int, str]
"""Names by index."""
BY_NAME = "label_map='by_name' (--label-map by_name)"
"""How the user asks for labels to be matched by name, in Python and as a flag."""
DIFFERING = 0.05
"""Share of names that may differ where the others tell that the order is the same."""


def check_same_labels(
    name: str, labels: Labels, other_name: str, other_labels: Labels, is_mapped: bool = False
) -> bool:
    """Refuse two label spaces that cannot be the same: different counts, or the same names in another order.

    Names that merely differ pass, since checkpoints spell them differently ("tench" and "tench, Tinca tinca"), and so
    do generic ones (`LABEL_3`).

    Args:
        name, labels: an expert and its names of the pool's labels.
        other_name, other_labels: another one.
        is_mapped: whether the user gave a `label_map` for the first, which counts more than names: another order is
            then a warning.

    Returns:
        Whether the names tell that the order is the same.

    Raises:
        PertinenceError: the label spaces differ; the message names the first difference and, for another order, the
            `label_map` that corrects it.
    """
    difference = first_difference(labels, other_labels)
    if len(labels) != len(other_labels):
        raise PertinenceError(
            f"{name!r} has {len(labels)} labels and {other_name!r} has {len(other_labels)}: {difference}. Keep those "
            f"that all share, by their names, {BY_NAME}, or give the one with more labels a `label_map` (in Python or "
            "a --config file)"
        )
    order = in_same_order(labels, other_labels)
    if order is False and is_mapped:
        logger.warning(
            f"By their names, {name!r} has the labels of {other_name!r} in another order: {difference}. Its label_map "
            "is used all the same."
        )
    elif order is False:
        raise PertinenceError(
            f"{name!r} has the labels of {other_name!r} in another order: {difference}. "
            f"{_describe_map(name, labels, other_labels)}"
        )
    return order is True


def _describe_map(name: str, labels: Labels, others: Labels) -> str:
    """What brings an expert's labels into the order of others, as far as their names tell it."""
    found = match_by_name(others, labels)
    if len(found) < len(others):
        unknown = next(others[index] for index in sorted(others) if index not in found)
        return (
            f"Give {name!r} a label_map, for each label of the pool its index in the expert's own ({unknown!r} is not "
            f"found by its name); that is list(range({len(others)})) if the order is the same in spite of the names"
        )
    order = [found[index] for index in sorted(others)]
    text = str(order) if len(order) <= 20 else f"[{', '.join(map(str, order[:8]))}, ...]"
    names = _places({index: _normal(name) for index, name in labels.items()})
    twice = "; of labels with one name, the first is taken for the first" if len(names) < len(labels) else ""
    return f"Have labels found by their names, {BY_NAME}, or give {name!r} label_map={text}, which is the same{twice}"


def in_same_order(labels: Labels, others: Labels) -> bool | None:
    """Whether two label spaces have the same order, by their names.

    Returns:
        False if their sizes differ, or a name stands in the place of another one that stands elsewhere, too, or more
        than a few names stand elsewhere; None if the names do not tell: they are generic, or too many differ.
    """
    if is_generic(labels) or is_generic(others):
        return None
    if len(labels) != len(others):
        return False
    ours, theirs = ({index: _normal(name) for index, name in part.items()} for part in (labels, others))
    if ours == theirs:
        return True
    found = match_by_name(labels, others)
    # A single name may have two meanings, as that of the crane which one list of ImageNet calls "crane bird".
    moved = {index: other for index, other in found.items() if index != other}
    is_more = len(moved) > min(DIFFERING * len(ours), len(found) / 2)
    if is_more or moved.keys() & set(moved.values()):
        return False
    differing = [
        index for index in ours if found.get(index) != index and not _parts(ours[index]) & _parts(theirs[index])
    ]
    # If all names but one are the same, that one is known, too.
    return True if len(differing) <= max(1, DIFFERING * len(ours)) else None


def describe_doubt(title: str, labels: Labels, other_title: str, others: Labels) -> str:
    """Say why names do not tell whether two label spaces have the same order."""
    generic = [owner for owner, part in ((title, labels), (other_title, others)) if is_generic(part)]
    reason = f"those of {' and '.join(generic)} are generic, LABEL_0, ..." if generic else None
    return (
        f"Whether the labels of {title} are in the order of those of {other_title} cannot be told from their names "
        f"({reason or first_difference(labels, others)}): the same order is assumed."
    )


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
    taken = set(found.values())
    found |= _paired(
        {index: name for index, name in ours.items() if index not in found},
        {index: name for index, name in theirs.items() if index not in taken},
    )
    other_alias, matches = _aliases(theirs), dict[int, set[int]]()
    for alias, index in _aliases(ours).items():
        if index not in found and alias in other_alias:
            matches.setdefault(index, set()).add(other_alias[alias])
    taken = set(found.values())
    for index in sorted(matches):
        if len(matches[index]) == 1 and not matches[index] & taken:
            found[index] = matches[index].pop()
            taken.add(found[index])
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


def _parts(name: str) -> set[str]:
    return {part.strip() for part in name.split(",")}


def _aliases(names: Labels) -> dict[str, int]:
    """The index of each alias that only one label has."""
    owners: dict[str, set[int]] = {}
    for index, name in names.items():
        for alias in _parts(name):
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


def read_names(id2label: Mapping[Any, Any] | Sequence[Any] | None, count: int | None) -> Labels:
    """The names of a classifier's outputs by rising index: those of its config, else generic ones (`LABEL_3`).

    Args:
        id2label: names in the config.
        count: number of outputs.
    """
    given = id2label.items() if isinstance(id2label, Mapping) else enumerate(id2label or ())
    names = {int(index) if str(index).isdecimal() else index: name for index, name in given}
    names = names or dict.fromkeys(range(count or 0))
    known = range(len(names)) if names.keys() == set(range(len(names))) else list(names)
    return {index: f"LABEL_{index}" if names[index] is None else str(names[index]) for index in known}


def contradiction(labels: Labels, label2id: Any) -> str | None:
    """The first name that a config's `label2id` gives another index than `id2label` does; None if there is none."""
    places = _places(labels)
    for name, index in label2id.items() if isinstance(label2id, dict) else ():
        if str(name) in places and str(index) not in map(str, places[str(name)]):
            return f"{str(name)!r} is label {places[str(name)][0]} by id2label and {index!r} by label2id"
    return None


def is_generic(labels: Labels) -> bool:
    return all(re.fullmatch(r"label \d+", _normal(label)) for label in labels.values())


def _normal(name: Any) -> str:
    """A name without what spellings differ in: case, separators of words, and how Unicode composes its characters."""
    words = unicodedata.normalize("NFC", str(name)).casefold().replace("_", " ")
    return " ".join(re.sub(r"(?<=\w)-(?=\w)", " ", words).split())


def first_difference(labels: Labels, other_labels: Labels) -> str:
    """Describe the first difference between two label spaces."""
    for index in range(max(len(labels), len(other_labels))):
        ours, theirs = labels.get(index), other_labels.get(index)
        if ours != theirs:
            return f"label {index} is {ours!r} here and {theirs!r} there"
    return "no label differs"
