"""A saved model without torch: what its config says of the experts, preprocessing with Pillow, exported graphs.

With `routing` and a few modules of `utils` these files are also the wheel `pertinence-runtime`. Imports numpy, Pillow,
ONNX Runtime, huggingface-hub, safetensors, `routing` and `utils`; never torch.
"""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .model import RuntimeModel, load

__all__ = ["RuntimeModel", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import model  # what reads only configs needs no images

    return getattr(model, name)
