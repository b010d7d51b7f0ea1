"""pertinence-runtime: runs models of pertinence with ONNX Runtime, without torch.

The modules beside this file in the wheel are those of the package `pertinence`.
"""

from ._version import __version__ as __version__
from .routing.evidence import register_evidence
from .runtime.model import RuntimeModel, load
from .utils.errors import PertinenceError


__all__ = ["PertinenceError", "RuntimeModel", "__version__", "load", "register_evidence"]
