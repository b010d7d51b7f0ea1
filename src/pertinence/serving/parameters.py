"""What a request may ask for besides the answer: the parameters of Hugging Face's convention, a budget, details."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..routing.budgets import Budget
from ..utils.errors import PertinenceError, shown
from .refusals import Refusal


TOP_K = 5
FUNCTIONS = ("softmax", "sigmoid", "none")
OF_THE_SERVER = "max_error_rate"
"""The kind of budget that is set where the server is started, as it is a promise to all who ask."""
KINDS: dict[str, tuple[type, str]] = {
    "top_k": (int, "how many labels are listed, the most probable first; default: 5"),
    "function_to_apply": (str, f"what makes scores of logits: {', '.join(FUNCTIONS)}; default: softmax"),
    "details": (bool, "also say which experts ran, why, at which operating point, and what it cost"),
    **{one.name: (one.type, str(one.metadata["help"])) for one in Budget.settings() if one.name != OF_THE_SERVER},
}
"""Each parameter: its type, and what it says."""
TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Parameters:
    """What a request asks for.

    Attributes:
        top_k: number of labels that are listed.
        function: what makes scores of logits.
        details: whether the answer says how it was found.
        budget: what chooses the operating point that it asks for; none given: the point of the server.
    """

    top_k: int = TOP_K
    function: str = FUNCTIONS[0]
    details: bool = False
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Parameters:
        """Read parameters, of JSON or as text.

        Raises:
            Refusal: one of them is unknown, or has a value that it does not take.
        """
        read = {name: _read(name, value) for name, value in values.items() if value is not None}
        try:
            budget = Budget(**{one.name: read.get(one.name) for one in Budget.settings()})
        except PertinenceError as error:
            raise _refusal(str(error)) from error
        top_k, function = read.get("top_k", TOP_K), read.get("function_to_apply", FUNCTIONS[0])
        if top_k < 1:
            raise _refusal(f"top_k must be at least 1, a whole number, got {shown(top_k)}")
        if function not in FUNCTIONS:
            raise _refusal(f"function_to_apply={shown(function)} is not one of {', '.join(FUNCTIONS)}")
        return cls(top_k, function, read.get("details", False), budget)

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Scores of float logits (C,)."""
        if self.function == "none":
            return logits
        if self.function == "sigmoid":
            return 1 / (1 + np.exp(-logits.clip(-500, 500)))
        exponentials = np.exp(logits - logits.max())
        return exponentials / exponentials.sum()


def only_known(names: Iterable[str]) -> None:
    """Raise `Refusal` if a name is not that of a parameter."""
    for name in names:
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}"
            raise _refusal(f"there is no parameter {shown(name, 60)}: {hint}")


def _read(name: str, value: Any) -> Any:
    only_known([name])
    kind, _ = KINDS[name]
    try:
        if isinstance(value, str) and kind is not str:
            return TRUTH[value.lower()] if kind is bool else kind(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    except (KeyError, ValueError, OverflowError):
        pass
    else:
        if type(value) is kind:
            return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    raise _refusal(f"{name} must be {expected}, got {shown(value, 60)}")


def _refusal(sentence: str) -> Refusal:
    return Refusal(400, "parameters", sentence)
