"""Multiply-adds of a network, counted twice: by fvcore, which traces it, and by torch, which watches it run.

Each counter leaves out operations for which it has no formula, without a word. What both count is compared, so that an
operation that one of them leaves out is found, counted and named.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..utils.errors import PertinenceError, explain


TOLERANCE = 0.05
"""Two counts that differ by a smaller share agree."""
CHEAP = ("batch_norm", "group_norm", "layer_norm", "instance_norm", "adaptive_avg_pool2d", "grid_sampler", "upsample")
"""What fvcore counts and torch does not: normalisation, pooling and interpolation."""
MULTIPLIES = re.compile(
    "mm|mv|dot|matmul|gemm|linear|conv|attention|transformer|lstm|gru|rnn|fft|inner|cdist|matrix_exp|cholesky"
    "|linalg_(?!vector_norm|cross|diagonal|check)"
)
"""Names of torch's operations that multiply more than element by element."""
NO_KERNELS = ("aten", "prim", "prims", "profiler", "c10d", "_c10d_functional")
"""Namespaces of operations whose names say what they do; in all others any operation may multiply."""


@dataclass(frozen=True)
class Operations:
    """Multiply-adds of one image.

    Attributes:
        gmacs: how many, in units of 10^9; normalisation and pooling included.
        note: what the two counters do not agree on, or do not count; None if all is counted by both.
    """

    gmacs: float
    note: str | None = None


@dataclass(frozen=True)
class _Counted:
    """What one counter found: multiply-adds by operation, and names of operations that it does not know."""

    macs: Mapping[str, float]
    unknown: tuple[str, ...]

    @property
    def cheap(self) -> float:
        return sum(macs for name, macs in self.macs.items() if name.startswith(CHEAP))

    def of_kind(self, convolutions: bool) -> float:
        """Multiply-adds of convolutions, or of all other products."""
        compared = {name: macs for name, macs in self.macs.items() if not name.startswith(CHEAP)}
        return sum(macs for name, macs in compared.items() if ("conv" in name) == convolutions)

    @property
    def compared(self) -> float:
        return self.of_kind(True) + self.of_kind(False)


def count_operations(model: nn.Module, size: tuple[int, int], options: dict[str, Any] | None = None) -> Operations:
    """Count the multiply-adds of one image of (3, height, width) through an image classifier, preprocessing excluded.

    Args:
        model: a transformers image classifier, or a backbone with the same interface; it runs on its own device.
        size: (height, width), in pixels, of the model's input.
        options: further arguments of the model's call.

    Raises:
        PertinenceError: the model does not run on such an image.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
    network = _LogitsOf(model, options or {}).eval()
    failures = []
    counts: list[_Counted | None] = []
    with torch.no_grad(), warnings.catch_warnings(), _nothing_fused(model):
        warnings.simplefilter("ignore")  # torch deprecates the tracing that fvcore is built on
        for counter in (_traced, _watched):
            try:
                counts.append(counter(network, image))
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # a model that does not take images may raise anything, and so may a tracer
                counts.append(None)
                failures.append(error)
    traced, watched = counts
    if traced is None and watched is None:
        raise PertinenceError(
            f"the operations of {type(model).__name__} cannot be counted on a {size[0]}x{size[1]} image: {failures[0]}"
        ) from failures[0]
    return _agreed(traced, watched, failures)


def _agreed(traced: _Counted | None, watched: _Counted | None, failures: list[Exception]) -> Operations:
    """One count of two, of which at most one is missing; where they differ, the larger of each kind."""
    notes = []
    if watched is None:
        assert traced is not None
        total = sum(traced.macs.values())
        notes.append(f"only fvcore counts its operations (torch's counter fails: {explain(failures[0])})")
    elif traced is None:
        total = watched.compared
        notes.append(f"only torch counts its operations (fvcore cannot trace it: {explain(failures[0])})")
    else:
        total = sum(traced.macs.values())
        kinds = [(traced.of_kind(which), watched.of_kind(which)) for which in (True, False)]
        most = sum(map(max, kinds))
        if sum(abs(one - other) for one, other in kinds) > TOLERANCE * most:
            total = traced.cheap + most
            notes.append(
                f"fvcore counts {traced.compared / 1e9:.4g} GMACs in its operations and torch "
                f"{watched.compared / 1e9:.4g}: they differ in {_differing(traced, watched)}; the larger is used"
            )
    if watched is not None and watched.unknown:
        notes.append(f"the operation {', '.join(watched.unknown)} is not counted")
    return Operations(total / 1e9, "; ".join(notes) or None)


def _differing(traced: _Counted, watched: _Counted) -> str:
    """Names of the operations in which two counts differ."""
    names: list[str] = []
    for convolutions in (True, False):
        one, other = traced.of_kind(convolutions), watched.of_kind(convolutions)
        if one != other:
            source = traced if one > other else watched
            names += [
                name
                for name in source.macs
                if ("conv" in name) == convolutions and not name.startswith(CHEAP) and source.macs[name]
            ]
    return ", ".join(traced.unknown or dict.fromkeys(names))


def _traced(network: nn.Module, image: torch.Tensor) -> _Counted:
    """The count of fvcore, with handles for what it does not know or counts wrongly."""
    # Imported here, so that running a saved model does not need fvcore.
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(network, image)
    analysis.set_op_handle(**HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    counts = analysis.by_operator()
    return _Counted(dict(counts), tuple(filter(_multiplies, analysis.unsupported_ops())))


def _watched(network: nn.Module, image: torch.Tensor) -> _Counted:
    """The count of torch, with formulas for what it does not know."""
    # Imported here, as running a saved model does not need it.
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    formulas = {_operation(name): formula for name, formula in FORMULAS.items() if _operation(name) is not None}
    added = {operation: formula for operation, formula in formulas.items() if operation not in flop_registry}
    names = _Names()
    with FlopCounterMode(display=False, custom_mapping=added) as counter, names:
        network(image)
    found = counter.get_flop_counts().get("Global", {})
    known = {str(operation) for operation in (*flop_registry, *added)}
    unknown = [name.replace(".", "::", 1) for name in names.seen if name not in known]
    macs = {str(operation): flops / 2 for operation, flops in found.items()}
    return _Counted(macs, tuple(filter(_multiplies, unknown)))


def _multiplies(name: str) -> bool:
    """Whether an operation, "namespace::name", may do more than element by element."""
    namespace, _, operation = name.partition("::")
    if namespace == "prim":  # what fvcore does not see into
        return operation.startswith(("PythonOp", "CallFunction"))
    if namespace not in NO_KERNELS:
        return True
    return MULTIPLIES.search(operation) is not None and not operation.startswith("upsample")


def _operation(name: str) -> Any:
    namespace, _, operation = name.partition("::")
    return getattr(getattr(torch.ops, namespace), operation, None)


class _Names(TorchDispatchMode):
    """Notes the names of the operations that give tensors, in the order of their first call."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, (torch.Tensor, tuple, list)):
            self.seen[str(getattr(func, "overloadpacket", func))] += 1
        return output


class _LogitsOf(nn.Module):
    def __init__(self, model: nn.Module, options: dict[str, Any]):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values, **self.options).logits


@contextmanager
def _nothing_fused(model: Any) -> Iterator[None]:
    """Have layers run as the products that they consist of, instead of as one operation that no counter looks into."""
    fused = torch.backends.mha.get_fastpath_enabled()
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    torch.backends.mha.set_fastpath_enabled(False)
    if attention == "flex_attention":
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        if attention == "flex_attention":
            model.set_attn_implementation(attention)


# Handles of fvcore: multiply-adds of an operation from values of the traced graph


def _sizes(value: Any) -> list[int]:
    return value.type().sizes()


def _attention_macs(inputs: Any, outputs: Any) -> int:
    """Q K^T, and attention times V."""
    query, key, value = map(_sizes, inputs[:3])
    return math.prod(_sizes(outputs[0])[:-1]) * key[-2] * (query[-1] + value[-1])


def _product_macs(inputs: Any, outputs: Any) -> int:
    """Matrices or vectors, whose leading dimensions are broadcast."""
    return math.prod(_sizes(outputs[0])) * _sizes(inputs[0])[-1]


def _added_product_macs(inputs: Any, outputs: Any) -> int:
    return _product_macs(inputs[1:], outputs)


def _convolution_macs(inputs: Any, outputs: Any) -> Counter[str]:
    """A convolution whose padding is given by name."""
    output, weight = _sizes(outputs[0]), _sizes(inputs[1])
    return Counter({"conv": math.prod(output) * math.prod(weight[1:])})


HANDLES = {
    "aten::scaled_dot_product_attention": _attention_macs,
    "aten::matmul": _product_macs,
    "aten::baddbmm": _added_product_macs,
    "aten::_convolution_mode": _convolution_macs,
}

# Formulas for torch's counter: floating-point operations, two for each multiply-add, from the shapes of the arguments


def _vector_flops(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a)


def _added_vector_flops(added: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a)


def _matrix_flops(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _added_matrix_flops(added: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _layer_flops(steps: Any, *args: Any, **kwargs: Any) -> int:
    """One recurrent layer of oneDNN: every step is multiplied with two matrices."""
    return 2 * math.prod(steps[:-1]) * sum(map(math.prod, args[:2]))


def _layers_flops(steps: Any, weights: Any, *args: Any, **kwargs: Any) -> int:
    """Recurrent layers of cuDNN: every step is multiplied with all matrices."""
    return 2 * math.prod(steps[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _real_transform_flops(signal: Any, axes: Any, *args: Any, **kwargs: Any) -> float:
    return 2.5 * math.prod(signal) * math.log2(max(2, math.prod(signal[axis] for axis in axes)))


def _inverse_transform_flops(signal: Any, axes: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> float:
    return _real_transform_flops(out_shape, axes)


def _complex_transform_flops(signal: Any, axes: Any, *args: Any, **kwargs: Any) -> float:
    return 2 * _real_transform_flops(signal, axes)


def _distance_flops(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(out_shape) * a[-1]


def _bilinear_flops(a: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * a[0] * math.prod(weight)


def _deformable_flops(image: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


FORMULAS = {
    "aten::mv": _vector_flops,
    "aten::addmv": _added_vector_flops,
    "aten::dot": _vector_flops,
    "aten::vdot": _vector_flops,
    "aten::addbmm": _added_matrix_flops,
    "aten::_int_mm": _matrix_flops,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention_flops,  # torch before 2.14 overlooks it
    "aten::mkldnn_rnn_layer": _layer_flops,
    "aten::_cudnn_rnn": _layers_flops,
    "aten::_fft_r2c": _real_transform_flops,
    "aten::_fft_c2r": _inverse_transform_flops,
    "aten::_fft_c2c": _complex_transform_flops,
    "aten::_cdist_forward": _distance_flops,
    "aten::_euclidean_dist": _distance_flops,
    "aten::_trilinear": _bilinear_flops,
    "torchvision::deform_conv2d": _deformable_flops,
}
