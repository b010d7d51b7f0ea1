"""8-bit graphs: static quantization by ONNX Runtime, calibrated on images of the search."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..data.batches import Images
from ..runtime.exports import FILES, INT8, Export
from ..runtime.sessions import Session
from ..utils.errors import PertinenceError, explain
from ..utils.io import replaced
from .backends.onnx import CACHE, cached_export
from .expert import Expert
from .export_agreement import agreement_of, pixels_of
from .host_pixels import measure_host_pixels


CALIBRATION_IMAGES = 128
COMPARED_IMAGES = 256
OPERATORS = ["Conv", "Gemm", "MatMul"]
"""What is computed in 8 bits; in transformers, scales of other operators (LayerNormalization) cannot be quantized."""
AT_ONCE = 32
VERSION = b"2"
"""Of how graphs are quantized: those of others in the cache are not used."""


def quantized(expert: Expert, images: Images) -> tuple[Path, Export]:
    """The 8-bit graph of an expert, in the cache.

    Weights have one scale for each channel, activations one for each tensor (QDQ), from their smallest and largest
    values on the calibration images. Weights keep to 7 bits: where a processor adds products of 8 bits in 16 (AVX2
    without VNNI), larger ones overflow: the zoo's ResNet-8 lost 3.6 points.

    Args:
        expert: a loaded expert in torch.
        images: the first 128 calibrate; on the others, if there are any, the graph is compared with torch.

    Raises:
        PertinenceError: the packages of an export are missing, or ONNX Runtime cannot quantize the network.
    """
    path, export = cached_export(expert.checkpoint, expert.entry)
    content = export.read(path)
    pixels = [one.float().cpu().numpy() for one in pixels_of(expert, images[:CALIBRATION_IMAGES])]
    key = hashlib.sha256(VERSION + content + b"".join(one.tobytes() for one in pixels)).hexdigest()[:32]
    root = CACHE / key
    record, file = root / "export.json", str(Path(export.file).with_name(FILES[INT8]))
    if record.is_file():
        return root / file, Export.from_dict(json.loads(record.read_text()))
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    with replaced(root / file) as temporary:
        _quantize(path, temporary, pixels)
    digest = hashlib.sha256((root / file).read_bytes()).hexdigest()
    made = replace(export, file=file, sha256=digest, precision=INT8)
    if len(images) > CALIBRATION_IMAGES:
        session, others = Session.of(root / file, made), images[CALIBRATION_IMAGES:]
        agreement, _ = agreement_of(expert, session, others)
        made = replace(made, agreement=agreement, host_pixels=measure_host_pixels(expert, others))
    with replaced(record) as temporary:
        temporary.write_text(json.dumps(made.to_dict()))
    return root / file, made


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
