"""The pool: compatible experts by rising cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..data.labels import check_same_labels, is_generic, resolve_label_map
from ..utils.errors import PertinenceError
from ..utils.validation import is_commit
from .expert import Expert, load_expert
from .loading import Checkpoint
from .reference import ExpertReference, LoadOptions


def load_pool(references: Sequence[Any], options: LoadOptions, preprocessing: str = "exact") -> list[Expert]:
    """Load experts, check that they are compatible, and sort them by rising cost.

    Raises:
        PertinenceError: there are fewer than two, one cannot be loaded, two are the same, or label spaces differ.
    """
    parsed = [ExpertReference.parse(reference) for reference in list_references(references)]
    if len(parsed) < 2:
        raise PertinenceError(f"a pool needs at least two experts, got {len(parsed)}: there is nothing to choose from")
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
    experts = sorted(_aligned(parsed, experts), key=lambda expert: expert.entry.gmacs)
    return [
        expert.with_entry(expert.entry.replace(name=name))
        for expert, name in zip(experts, _unique_names(experts), strict=True)
    ]


def list_references(references: Sequence[Any]) -> list[Any]:
    """The references as a list; a single reference is refused, not iterated over."""
    if isinstance(references, (str, Path, dict, PreTrainedModel)):
        raise PertinenceError(f"experts come as a list of at least two, got one {type(references).__name__}")
    return list(references)


def _aligned(references: Sequence[ExpertReference], experts: Sequence[Expert]) -> list[Expert]:
    """The experts with the label maps that bring their outputs into the order of the pool."""
    first = experts[0]
    if references[0].label_map is not None:
        # The first expert's own map defines the labels of the pool.
        own = first.checkpoint.labels
        chosen = list(own) if references[0].label_map == "by_name" else references[0].label_map
        size = len(chosen) if isinstance(chosen, (list, tuple)) else len(own)
        label_map = resolve_label_map(chosen, own, dict.fromkeys(range(size), ""), first.entry.name)
        first = first.with_entry(first.entry.replace(label_map=label_map))
    labels, aligned = first.labels, [first]
    for reference, expert in zip(references[1:], experts[1:], strict=True):
        name, names = expert.entry.name, expert.checkpoint.labels
        label_map = resolve_label_map(reference.label_map, names, labels, name)
        check_same_labels(name, names, first.entry.name, labels, label_map)
        aligned.append(expert.with_entry(expert.entry.replace(label_map=label_map)))
    return aligned


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
