"""Sessions: exported graphs in ONNX Runtime, on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import PertinenceError, explain, shown
from .exports import FEATURES, INPUT, LOGITS, Export


CPU = "CPUExecutionProvider"
FLOATS = "tensor(float)"
QUIET = 3
"""Severity of ONNX Runtime's log: errors only."""


@dataclass(frozen=True)
class SessionSettings:
    """How graphs are opened, in the words of optimum.

    Attributes:
        provider: execution provider of ONNX Runtime, like "CPUExecutionProvider" or "CUDAExecutionProvider".
        session_options: `onnxruntime.SessionOptions`, in place of `threads`.
        threads: threads of each session; default: ONNX Runtime's.

    Raises:
        PertinenceError: both are given.
    """

    provider: str = CPU
    session_options: Any = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.session_options is not None and self.threads is not None:
            raise PertinenceError(
                "session_options and threads were both given, expected one: set session_options.intra_op_num_threads"
            )

    @property
    def device(self) -> str:
        """The kind of device that the provider runs on, as torch names it."""
        return "cuda" if self.provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider") else "cpu"


@dataclass(frozen=True)
class Widths:
    """What a config says about the widths of a graph's outputs.

    Attributes:
        labels: number of labels of the model; 0: not known, as of a stem.
        features: width of the pooled features.
        label_map: index of each label in the logits, of which there may be more; None: the same order.
    """

    labels: int
    features: int
    label_map: Sequence[int] | None = None

    def check(self, file: str, widths: Mapping[str, int]) -> None:
        """Raise `PertinenceError` unless the outputs of a graph have these widths."""
        labels, most = self.labels, max(self.label_map or (0,))
        if most >= widths[LOGITS]:
            raise PertinenceError(f"{file} gives {widths[LOGITS]} logits, but its label_map names output {most}")
        expected = {LOGITS: None if self.label_map is not None else labels or None, FEATURES: self.features}
        for name, width in widths.items():
            if expected[name] not in (None, width):
                raise PertinenceError(
                    f"{file} gives {width} {name}, but config.json describes {expected[name]}: it is the graph of "
                    "another expert, so export the model again"
                )


class Session:
    """One exported graph, opened; it may run in several threads.

    Args:
        content: the file, see `Export.read`.
        export: what the config records about it.
        settings: how it is opened.
        widths: widths of its outputs; None: not known.

    Raises:
        PertinenceError: ONNX Runtime is not installed or does not have the provider, or the file is no graph with the
            recorded inputs and outputs.
    """

    def __init__(
        self,
        content: bytes,
        export: Export,
        settings: SessionSettings | None = None,
        widths: Widths | None = None,
    ):
        self.export, self.settings = export, settings or SessionSettings()
        self._session = _open(content, export.file, self.settings)
        self._outputs = export.outputs
        shapes = {one.name: one.shape for one in self._session.get_outputs() if one.type == FLOATS}
        inputs = {one.name: one.shape for one in self._session.get_inputs() if one.type == FLOATS}
        check_interface(export, inputs, shapes, widths)

    @classmethod
    def of(cls, path: Path, export: Export, *how: Any) -> Session:
        """Open a file after its hash was checked; see `Export.read`."""
        return cls(export.read(path), export, *how)

    def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Run it on float32 (b, 3, height, width): logits (b, C), and features (b, F) or None.

        Raises:
            PertinenceError: the pixels have another shape, or the graph fails.
        """
        try:
            logits, *features = self._session.run(self._outputs, {INPUT: pixels})
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            raise PertinenceError(
                f"{self.export.file} fails on pixels of shape {pixels.shape}, expected (any, "
                f"{', '.join(map(str, self.export.input_shape))}) ({explain(error)})"
            ) from error
        return logits, features[0] if features else None


def check_interface(
    export: Export,
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
    widths: Widths | None = None,
) -> None:
    """Raise `PertinenceError` unless a graph has the inputs and outputs that its description promises.

    Args:
        export: the description.
        inputs, outputs: shapes of float32 inputs and outputs by name; a dimension of any size is no number.
        widths: widths of its outputs; None: not known.
    """
    pixels = list(inputs.get(INPUT, ()))
    is_right = (
        set(inputs) == {INPUT}
        and pixels[1:] == list(export.input_shape)
        and not isinstance(pixels[0], int)
        and all(_is_table(outputs.get(name, ())) for name in export.outputs)
    )
    if not is_right:
        raise PertinenceError(
            f"{export.file} maps {_shown(inputs)} to {_shown(outputs)}, but config.json describes {INPUT} (any, "
            f"{', '.join(map(str, export.input_shape))}) and {' and '.join(export.outputs)}"
        )
    if widths is not None:
        widths.check(export.file, {name: outputs[name][1] for name in export.outputs})


def _is_table(shape: Sequence[Any]) -> bool:
    return len(shape) == 2 and not isinstance(shape[0], int) and isinstance(shape[1], int)


def _shown(shapes: Mapping[str, Sequence[Any]]) -> str:
    return shown({name: list(shape) for name, shape in shapes.items()}, 200)


def _open(content: bytes, file: str, settings: SessionSettings) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise PertinenceError(
            "exported graphs need ONNX Runtime, which is not installed: pip install onnxruntime"
        ) from error
    offered = onnxruntime.get_available_providers()
    if settings.provider not in offered:
        raise PertinenceError(
            f"provider={shown(settings.provider)} is not one of this build of ONNX Runtime: {', '.join(offered)}"
        )
    options = settings.session_options
    if options is None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        options.inter_op_num_threads = 1
        if settings.threads is not None:
            options.intra_op_num_threads = settings.threads
    elif not isinstance(options, onnxruntime.SessionOptions):
        raise PertinenceError(f"session_options must be onnxruntime.SessionOptions, got {type(options).__name__}")
    try:
        return onnxruntime.InferenceSession(content, options, providers=[settings.provider])
    except Exception as error:  # as above
        raise PertinenceError(f"{file} cannot be opened by ONNX Runtime ({explain(error)})") from error
