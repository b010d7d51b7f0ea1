"""Exports: the network of a checkpoint as one file of ONNX."""

from __future__ import annotations

import hashlib
import logging as standard_logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runtime.entry import ExpertEntry
from ..runtime.exports import (
    FEATURES,
    FILES,
    FLOAT32,
    FOLDER,
    INPUT,
    LOGITS,
    Export,
    check_self_contained,
)
from ..utils.errors import PertinenceError, explain
from ..utils.io import replaced
from .features import FeatureTap
from .loading import Checkpoint, Classifier


class _Outputs(nn.Module):
    """A classifier whose outputs are tensors: logits, and features if they are asked for."""

    def __init__(self, model: Classifier, options: Mapping[str, Any], with_features: bool):
        super().__init__()
        self.model, self.options, self.with_features = model, dict(options), with_features

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self.with_features:
            return (self.model(pixel_values=pixel_values, **self.options).logits.float(),)
        logits, features = FeatureTap.of(self.model).run(self.model, pixel_values, **self.options)
        return logits.float(), features.float()


def export_network(checkpoint: Checkpoint, entry: ExpertEntry, with_features: bool, path: Path) -> int:
    """Write the network of an expert as one ONNX file, for batches of any size.

    Args:
        checkpoint: the loaded checkpoint.
        entry: entry of the expert, which says the size of its input.
        with_features: whether the pooled features are the second output.
        path: the file to write.

    Returns:
        The version of ONNX's operators.

    Raises:
        PertinenceError: the packages of an export are missing, or torch cannot export the network.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise PertinenceError(
            f"an export needs the package {error.name}: pip install onnx onnxscript onnxruntime"
        ) from error
    if checkpoint.model.dtype != torch.float32:
        raise PertinenceError(
            f"it computes in {str(checkpoint.model.dtype).removeprefix('torch.')}, and graphs in float32, which "
            "answers otherwise: search with --dtype float32, then export"
        )
    model = _Outputs(checkpoint.model, checkpoint.call_options(entry.transform), with_features).eval()
    pixels = torch.zeros(2, 3, *entry.transform.size, device=checkpoint.model.device, dtype=checkpoint.model.dtype)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (pixels,),
                dynamo=True,
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
                external_data=False,
                input_names=[INPUT],
                output_names=[LOGITS, FEATURES][: 1 + with_features],
                verbose=False,
            )
    except Exception as error:  # the exporter may fail in any way
        raise PertinenceError(
            f"torch cannot export {type(checkpoint.model).__name__} to ONNX ({explain(_cause(error))})"
        ) from error
    assert program is not None
    _forget_origins(program.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        program.save(temporary, include_initializers=True)
        check_self_contained(temporary.read_bytes(), path.name)
    return int(program.model.opset_imports[""])


def exported(checkpoint: Checkpoint, entry: ExpertEntry, home: str, root: Path, with_features: bool) -> Export:
    """Export a checkpoint to `experts/<home>/onnx/model.onnx` in a folder; see `export_network`."""
    file = f"experts/{home}/{FOLDER}/{FILES[FLOAT32]}"
    opset = export_network(checkpoint, entry, with_features, root / file)
    digest = hashlib.sha256((root / file).read_bytes()).hexdigest()
    shape = (3, *entry.transform.size)
    return Export(file, digest, checkpoint.revision, opset, shape, has_features=with_features)


def _forget_origins(model: Any) -> None:
    """Remove what the exporter notes of each node: stack traces with paths of this machine, which also take space."""
    model.metadata_props.clear()
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in (*node.inputs, *node.outputs):
                if value is not None:
                    value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


def _cause(error: BaseException) -> BaseException:
    """What the exporter ran into, below its own advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose errors are explained by ours."""
    loggers = [standard_logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(standard_logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
