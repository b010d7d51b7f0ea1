"""8-bit graphs: static quantization by ONNX Runtime, calibrated on images of a search."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..data.batches import Images, take
from ..data.splits import sample_rows
from ..runtime.exports import FILES, INT8, Export
from ..runtime.sessions import Session
from ..utils.errors import PertinenceError, explain
from .expert import Expert
from .export_agreement import agreement_of, pixels_of
from .export_cache import as_bytes, cached, cached_export


CALIBRATION_IMAGES = 128
"""How many of the images calibrate; on the others the graph is compared with torch."""
VERSION = 2
"""Of how graphs are quantized: those of others in the cache are not used."""
OPERATORS = ["Conv", "Gemm", "MatMul"]
"""What is computed in 8 bits; in transformers, scales of other operators (LayerNormalization) cannot be quantized."""
AT_ONCE = 32


def quantized(expert: Expert, images: Images) -> tuple[Path, Export]:
    """The 8-bit graph of an expert, in the cache.

    Weights have one scale for each channel, activations one for each tensor (QDQ), from their smallest and largest
    values on the calibration images. Weights keep to 7 bits: where a processor adds products of 8 bits in 16 (AVX2
    without VNNI), larger ones overflow: the zoo's ResNet-8 lost 3.6 points.

    Args:
        expert: a loaded expert in torch.
        images: 128 of them, evenly spaced, calibrate; on the others, if any, the graph is compared with torch.

    Raises:
        PertinenceError: the packages of an export are missing, or ONNX Runtime cannot quantize the network.
    """
    path, whole = cached_export(expert.checkpoint, expert.entry)
    chosen = sample_rows(len(images), CALIBRATION_IMAGES)
    pixels = [one.float().cpu().numpy() for one in pixels_of(expert, take(images, chosen))]

    def make(folder: Path) -> Export:
        file = str(Path(whole.file).with_name(FILES[INT8]))
        (folder / file).parent.mkdir(parents=True)
        _quantize(path, folder / file, pixels)
        digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        return replace(whole, file=file, sha256=digest, precision=INT8)

    graph = as_bytes(whole.sha256, [_version(name) for name in ("onnxruntime", "onnx")], VERSION)
    made, export = cached(graph + b"".join(one.tobytes() for one in pixels), make)
    export = replace(export, revision=whole.revision)
    others = sorted(set(range(len(images))) - set(chosen.tolist()))
    if others:
        compared = [images[row] for row in others]
        export = replace(export, agreement=agreement_of(expert, Session.of(made, export), compared)[0])
    return made, export


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _quantize(source: Path, target: Path, pixels: list[np.ndarray]) -> None:
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise PertinenceError(
            f"8-bit graphs need the package {error.name}: pip install onnx onnxscript onnxruntime"
        ) from error

    class Reader(CalibrationDataReader):
        batches = iter([batch for part in pixels for batch in np.array_split(part, -(-len(part) // AT_ONCE))])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixel_values": batch}

    with TemporaryDirectory() as work, _quiet():
        try:
            prepared = str(Path(work) / "prepared.onnx")
            quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                str(target),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,
            )
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            raise PertinenceError(f"ONNX Runtime cannot quantize its graph ({explain(error)})") from error


@contextmanager
def _quiet() -> Iterator[Any]:
    """Silence the advice of ONNX Runtime, which goes to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
