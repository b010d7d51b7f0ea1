"""The backend that runs an exported graph in OpenVINO, in float32."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from ...runtime.exports import INPUT, Export
from ...runtime.sessions import Widths, check_interface
from ...utils.errors import PertinenceError, explain
from ..reference import LoadOptions
from .onnx import Graph, OnnxBackend


class OpenVinoBackend(OnnxBackend):
    """The same ONNX file, compiled by OpenVINO for the CPU."""

    libraries: ClassVar[tuple[str, ...]] = ("openvino",)

    def opened(self, content: bytes, export: Export, options: LoadOptions, widths: Widths | None) -> Graph:
        if options.provider is not None or options.session_options is not None:
            raise PertinenceError("provider and session_options are of ONNX Runtime: leave them out with openvino")
        return CompiledGraph(content, export, widths)


class CompiledGraph:
    """A graph compiled by OpenVINO.

    Args:
        content: the file, see `Export.read`.
        export: what the config records about it.
        widths: widths of its outputs; None: not known.

    Raises:
        PertinenceError: OpenVINO is not installed, or does not take the graph.
    """

    def __init__(self, content: bytes, export: Export, widths: Widths | None = None):
        self.export = export
        try:
            import openvino
        except ImportError as error:
            raise PertinenceError(
                "backend='openvino' needs OpenVINO, which is not installed: pip install openvino"
            ) from error
        core = openvino.Core()
        try:
            model = core.read_model(content, b"")
            # Otherwise it computes in bfloat16 where the CPU can, and thresholds move.
            settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            self._compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise PertinenceError(f"{export.file} cannot be opened by OpenVINO ({explain(error)})") from error
        check_interface(export, _shapes(model.inputs), _shapes(model.outputs), widths)
        self._outputs = [self._compiled.output(name) for name in export.outputs]

    def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            request: Any = self._compiled.create_infer_request()  # one for each call: calls come from several threads
            found = request.infer({INPUT: pixels}, share_inputs=True)
        except Exception as error:  # as above
            raise PertinenceError(
                f"{self.export.file} fails on pixels of shape {pixels.shape} ({explain(error)})"
            ) from error
        logits, *features = (np.array(found[output]) for output in self._outputs)
        return logits, features[0] if features else None


def _shapes(ports: Any) -> dict[str, list[int | None]]:
    """Shapes of float32 inputs or outputs by name, None for a dimension of any size."""
    return {
        port.any_name: [side.get_length() if side.is_static else None for side in port.get_partial_shape()]
        for port in ports
        if port.get_element_type().to_dtype() == np.float32
    }
