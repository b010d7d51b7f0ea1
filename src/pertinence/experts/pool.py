"""The pool: compatible experts by rising cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from ..data.labels import Labels, check_same_labels, describe_doubt, is_generic, match_by_name, resolve_label_map
from ..utils.errors import PertinenceError, shown
from ..utils.validation import is_commit
from .expert import Expert, load_expert
from .loading import Checkpoint, check_exists
from .reference import ExpertReference, LoadOptions


logger = logging.get_logger(__name__)

SHOWN_LABELS = 5


def load_pool(
    references: Sequence[Any], options: LoadOptions, preprocessing: str = "exact", label_map: str | None = None
) -> list[Expert]:
    """Load experts, check that they are compatible, and sort them by rising cost.

    Args:
        references: Hub id, `id@revision`, folder, mapping, or loaded model, for each expert.
        options: how they are loaded.
        preprocessing: "exact" or "fast".
        label_map: "by_name": the pool has the labels that all experts share, found by their names; None: all experts
            have the same labels in the same order, unless a mapping has a `label_map` of its own.

    Raises:
        PertinenceError: there are fewer than two, one cannot be loaded, two are the same, or label spaces differ.
    """
    if label_map not in (None, "by_name"):
        raise PertinenceError(f"label_map must be 'by_name' or None, got {shown(label_map)}")
    parsed = check_references(references, options)
    opened: dict[Any, Checkpoint] = {}
    experts = [load_expert(reference, options, preprocessing, opened=opened) for reference in parsed]
    identities: dict[tuple, str] = {}
    for expert in experts:
        entry = expert.entry
        repo_id = entry.repo_id if is_commit(entry.revision) else None
        identity = (entry.revision, repo_id, entry.transform, entry.backend)
        if identity in identities:
            raise PertinenceError(
                f"experts {identities[identity]!r} and {entry.name!r} are the same checkpoint with the same "
                "settings: leave one out"
            )
        identities[identity] = entry.name
    aligned = _aligned(parsed, experts) if label_map is None else _aligned_by_name(parsed, experts)
    experts = sorted(aligned, key=lambda expert: expert.entry.gmacs)
    return [
        expert.with_entry(expert.entry.replace(name=name))
        for expert, name in zip(experts, _unique_names(experts), strict=True)
    ]


def check_references(references: Sequence[Any], options: LoadOptions, stem: Any = None) -> list[ExpertReference]:
    """Parse the references of a pool, and check that they and a separate stem lead to checkpoints, before anything is
    loaded.

    Raises:
        PertinenceError: there are fewer than two, or one leads nowhere.
    """
    parsed = [ExpertReference.parse(reference) for reference in list_references(references)]
    if len(parsed) < 2:
        raise PertinenceError(f"a pool needs at least two experts, got {len(parsed)}: there is nothing to choose from")
    for reference in [*parsed, *([] if stem is None else [ExpertReference.parse(stem)])]:
        check_exists(reference, options)
    return parsed


def warn_of_costs(experts: Sequence[Expert]) -> None:
    """Say what is uncertain about the costs of experts, in one warning for each."""
    for expert in experts:
        if expert.entry.cost_note is not None:
            logger.warning(f"The cost of expert {expert.entry.name!r} is uncertain: {expert.entry.cost_note}.")


def list_references(references: Sequence[Any]) -> list[Any]:
    """The references as a list; a single reference is refused, not iterated over."""
    if isinstance(references, (str, Path, dict, nn.Module)) or not isinstance(references, Iterable):
        raise PertinenceError(f"experts come as a list of at least two, got one {type(references).__name__}")
    return list(references)


def _aligned(references: Sequence[ExpertReference], experts: Sequence[Expert]) -> list[Expert]:
    """The experts with the label maps that bring their outputs into the order of the pool."""
    first = experts[0]
    if references[0].label_map is not None:
        # The first expert's own map defines the labels of the pool.
        own = first.origin.labels
        chosen = list(own) if references[0].label_map == "by_name" else references[0].label_map
        size = len(chosen) if isinstance(chosen, (list, tuple)) else len(own)
        label_map = resolve_label_map(chosen, own, dict.fromkeys(range(size), ""), first.entry.name)
        first = first.with_entry(first.entry.replace(label_map=label_map))
    aligned, doubtful = [first], []
    for reference, expert in zip(references[1:], experts[1:], strict=True):
        name = expert.entry.name
        label_map = resolve_label_map(reference.label_map, expert.origin.labels, pool_labels(aligned), name)
        is_mapped, expert = label_map is not None, expert.with_entry(expert.entry.replace(label_map=label_map))
        # With all others, as the first may have no names.
        told = [check_same_labels(name, expert.labels, one.entry.name, one.labels, is_mapped) for one in aligned]
        if not is_mapped and not any(told):
            doubtful.append(expert)
        aligned.append(expert)
    if doubtful:
        names = " and ".join(repr(expert.entry.name) for expert in doubtful)
        doubt = describe_doubt(names, doubtful[0].labels, repr(first.entry.name), first.labels)
        logger.warning(f"{doubt} Name them in config.json (id2label), or give a label_map, to be sure.")
    return aligned


def _aligned_by_name(references: Sequence[ExpertReference], experts: Sequence[Expert]) -> list[Expert]:
    """The experts with the label maps that keep the labels that all share, in the order of the first expert.

    Raises:
        PertinenceError: the names of an expert's labels are unknown, or fewer than two labels are shared.
    """
    own = []
    for reference, expert in zip(references, experts, strict=True):
        names = _known_labels(expert)
        if isinstance(reference.label_map, (list, tuple)):
            size = dict.fromkeys(range(len(reference.label_map)), "")
            indices = resolve_label_map(list(reference.label_map), names, size, expert.entry.name)
            assert indices is not None
            names = {index: names[index] for index in indices}
        own.append(names)
    matches = [match_by_name(own[0], others) for others in own[1:]]
    shared = [index for index in own[0] if all(index in found for found in matches)]
    if len(shared) < 2:
        raise PertinenceError(
            f"the experts share {len(shared)} labels by their names: {experts[0].entry.name!r} has "
            f"{shown(list(own[0].values())[:3])}, and {experts[1].entry.name!r} {shown(list(own[1].values())[:3])}; "
            "leave by_name out and give the experts lists of indices as label_map"
        )
    aligned = []
    for expert, found in zip(experts, [{index: index for index in own[0]}, *matches], strict=True):
        label_map = [found[index] for index in shared]
        count = len(expert.origin.labels)
        if len(label_map) < count:
            dropped = [name for index, name in expert.origin.labels.items() if index not in set(label_map)]
            logger.warning(
                f"Expert {expert.entry.name!r} has {count} labels, of which the pool keeps the {len(label_map)} that "
                f"all experts share; dropped from its output: {shown(dropped[:SHOWN_LABELS])[1:-1]}"
                f"{', ...' if len(dropped) > SHOWN_LABELS else ''}."
            )
        entry = expert.entry.replace(label_map=None if label_map == list(range(count)) else label_map)
        aligned.append(expert.with_entry(entry))
    return aligned


def _known_labels(expert: Expert) -> Labels:
    """The names of an expert's outputs.

    Raises:
        PertinenceError: they are unknown: `LABEL_0`, or guessed from their number.
    """
    config, labels = expert.checkpoint.model.config, expert.origin.labels
    advice = "name them in its config.json, or leave by_name out and give the experts lists of indices as label_map"
    if is_generic(labels):
        raise PertinenceError(f"the labels of expert {expert.entry.name!r} have no names (LABEL_0, ...): {advice}")
    if config.model_type == "timm_wrapper" and getattr(config, "label_names", None) is None:
        # transformers then takes those of ImageNet, for any checkpoint with as many labels.
        tag = str((getattr(config, "pretrained_cfg", None) or {}).get("tag") or "")
        if re.search(r"(^|_)in1k($|_)", tag) is None:
            raise PertinenceError(
                f"the labels of expert {expert.entry.name!r} have no names, and its pretrained_cfg does not say that "
                f"they are those of ImageNet-1k (its tag is {shown(tag)}): {advice}"
            )
    return labels


def pool_labels(experts: Sequence[Expert]) -> dict[int, str]:
    """The labels of a pool: those of the first expert that names them."""
    return next((expert.labels for expert in experts if not is_generic(expert.labels)), experts[0].labels)


def _unique_names(experts: Sequence[Expert]) -> list[str]:
    """The names of experts; equal names are extended by their owners or folders, or by numbers."""
    given = [expert.entry.name for expert in experts]
    names: list[str] = []
    seen: Counter[str] = Counter()
    for name, expert in zip(given, experts, strict=True):
        owner = Path(expert.entry.repo_id or name).parent.name
        name = f"{owner}/{name}" if given.count(name) > 1 and owner else name
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names
