"""8-bit graphs: how they are quantized, and how far they agree with the network."""

import numpy as np
import onnx

from pertinence.experts.expert import load_expert, measured_expert
from pertinence.experts.reference import ExpertReference, LoadOptions


def test_weights_keep_to_seven_bits_so_that_no_processor_overflows(make_expert, images, tmp_path):
    expert = load_expert(ExpertReference(str(make_expert(tmp_path / "expert"))), LoadOptions())
    calibration = list(images(160, 64))
    made = measured_expert(expert.checkpoint, expert.entry, "exact", backend="onnx-int8", calibration=calibration)
    graph = onnx.load(made.network.path).graph
    quantized = [onnx.numpy_helper.to_array(one) for one in graph.initializer]
    weights = [values for values in quantized if values.dtype == np.int8 and values.ndim > 1]
    assert weights
    assert max(np.abs(values.astype(int)).max() for values in weights) == 64
    (export,) = made.entry.exports
    assert export.precision == "int8"
    assert export.agreement.images == 32
    assert export.agreement.same_answers >= 0.9
