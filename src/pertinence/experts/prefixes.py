"""Weights that were saved from a wrapped model, so that their names have parts that its network does not know."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from transformers.utils import logging

from ..utils.errors import PertinenceError, printable


logger = logging.get_logger(__name__)

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers of torch add to names: parallel, compiled, sharded, checkpointed."""
INNER = rf"(?<=\.)(?:(?:{'|'.join(WRAPPERS)})\.)+"
"""What they add within a name, where they wrap a layer."""
TWICE = rf"{INNER}(?=.)"
"""The same pattern in another spelling: transformers replaces only the first match of each."""


def load_unwrapped(load: Callable[..., Any], names: Collection[str], model: Any, info: dict[str, Any]) -> Any:
    """Load a model again without the prefix of the names of its weights, if that is why some are missing.

    Args:
        load: loads the model with a `key_mapping`; returns it with its loading info.
        names: names of the tensors in the files.
        model, info: what it returned without a mapping.

    Returns:
        The model, and its loading info, in which weights may still be missing if the names have no prefix.

    Raises:
        PertinenceError: the names have a prefix, but the rest of them is not what the network expects; or the files
            hold several sets of weights, or adapters.
    """
    if any(re.search(r"\.(lora_|base_layer\.)", name) for name in names):
        raise PertinenceError(
            "its weights hold adapters of peft beside those that they change: merge them, "
            "`peft_model.merge_and_unload().save_pretrained(folder)`"
        )
    base = f"{model.base_model_prefix}."
    expected = info["missing_keys"] | {name.removeprefix(base) for name in info["missing_keys"]}
    raw, inner = (
        _count_prefixes(names, expected),
        _count_prefixes([re.sub(INNER, "", name) for name in names], expected),
    )
    is_inner = inner.total() > raw.total()
    counts = inner if is_inner else raw
    found = [prefix for prefix, count in counts.most_common() if 2 * count >= max(counts.values())]
    if not found:
        return model, info
    if len(found) > 1:
        raise PertinenceError(
            f"its weights are several sets, with the prefixes {printable(', '.join(map(repr, sorted(found))))}, such "
            "as those of a model and of its moving average: save the one that you mean, without a prefix"
        )
    mapping = ({INNER: "", TWICE: ""} if is_inner else {}) | ({f"^{re.escape(found[0])}": ""} if found[0] else {})
    model, info = load(key_mapping=mapping)
    prefix = f"the prefix {printable(found[0])!r}" if found[0] else "a prefix of torch's wrappers on some layers"
    if missing := sorted(info["missing_keys"]):
        raise PertinenceError(
            f"its weights have {prefix}, and without it still lack {', '.join(missing[:3])}: save the whole model, "
            "with its classification head, and not what it is wrapped in"
        )
    logger.warning_once(
        f"The weights of a {type(model).__name__} have {prefix}, as they were saved from a wrapped model, and are "
        "loaded without it: what transformers reports as missing is there. Save the model itself to be rid of this."
    )
    return model, info


def _count_prefixes(names: Collection[str], expected: Collection[str]) -> Counter[str]:
    """How many names consist of a prefix and an expected name, by prefix."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        # The longest end counts: `classifier.bias` is also an end of the names of other layers.
        start = next((at for at in range(len(parts)) if ".".join(parts[at:]) in expected), None)
        if start is not None:
            counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts
