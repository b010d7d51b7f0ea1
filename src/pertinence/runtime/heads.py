"""The heads of a saved model, read as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..routing.heads import FORMER, PREFIX, Head, Stack, head_stacks, stack_name
from ..utils.errors import PertinenceError, explain
from ..utils.hashing import hash_arrays
from .config import ModelConfig


WEIGHTS = "model.safetensors"
FLOATS = {"F64", "F32", "F16"}
Heads = dict[str, list[Head]]
"""The heads of each operating point, one for each of its decisions, by the name of the point."""


def read_heads(path: Path, config: ModelConfig) -> Heads:
    """Read the heads of a model.

    Args:
        path: its `model.safetensors`.
        config: its config.

    Raises:
        PertinenceError: the file is missing or damaged, or does not belong to the config.
    """
    if not path.is_file():
        raise PertinenceError(f"{path.parent} has no {WEIGHTS}: fetch it, or save the model in one file")
    stacks = head_stacks(config.front, len(config.experts), config.feature_sizes)
    tensors = _read(path, _shapes(stacks, len(config.experts)))
    counts = tensors.pop(FORMER, None)
    if not all(np.isfinite(values).all() for values in tensors.values()):
        raise PertinenceError(f"the heads in {path} hold impossible numbers: fetch them again")
    hashed = tensors if counts is None or not counts.any() else {**tensors, FORMER: counts}
    if config.heads_hash is not None and config.heads_hash != hash_arrays(hashed):
        raise PertinenceError(
            f"config.json and the weights in {path.parent} do not belong together: they were copied in part, or "
            "another model was saved there; copy or save it anew"
        )
    rows = {(name, stack.name): row for stack in stacks for row, name in enumerate(stack.points)}
    return {
        point.name: [
            _head(tensors, stack_name(stage), rows[point.name, stack_name(stage)]) for stage in point.decisions
        ]
        for point in config.front
    }


def _read(path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read the tensors after their shapes were compared: a file must not determine how much memory they take."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items() if name != FORMER}
            if shapes != expected or not {one.get_dtype() for one in slices.values()} <= FLOATS:
                raise PertinenceError(f"the heads in {path} do not fit the front in config.json: fetch both again")
            return {name: file.get_tensor(name).astype(np.float32, copy=False) for name in slices}
    except (OSError, SafetensorError) as error:
        raise PertinenceError(f"{path} cannot be read ({explain(error)}): fetch it again") from error


def _shapes(stacks: list[Stack], num_experts: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for stack in stacks:
        count = len(stack.points)
        shapes[_tensor(stack.name, "weight")] = (count, num_experts, stack.width)
        shapes[_tensor(stack.name, "bias")] = (count, num_experts)
        if stack.num_statistics:
            shapes[_tensor(stack.name, "knots")] = (count, stack.num_statistics)
    return shapes


def _tensor(stack: str, part: str) -> str:
    return f"{PREFIX}stages.{stack}.{part}"


def _head(tensors: dict[str, np.ndarray], stack: str, row: int) -> Head:
    statistics = tensors.get(_tensor(stack, "knots"))
    return Head(
        tensors[_tensor(stack, "weight")][row],
        tensors[_tensor(stack, "bias")][row],
        None if statistics is None else statistics[row],
    )
