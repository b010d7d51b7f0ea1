"""pertinence: for each image the cheapest of your image classifiers that is expected to be right."""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from .configuration_pertinence import PertinenceConfig
from .errors import PertinenceError
from .figures import Figures
from .front import Front, OperatingPoint, Stage
from .guarantee import Guarantee
from .image_processing_pertinence import PertinenceImageProcessor
from .modeling_pertinence import PertinenceForImageClassification, PertinenceOutput


if TYPE_CHECKING:
    from .arguments import DataArguments, RuntimeArguments, SearchArguments
    from .calibration import calibrate, store_guarantee
    from .data import LabelledImages
    from .model_evaluation import evaluate_model
    from .monitoring import RoutingMonitor
    from .result import SearchResult
    from .search import DispatcherSearch, search_predictions
    from .streaming import StreamDispatcher
    from .tables import PredictionTable

__version__ = "0.1.0"

__all__ = [
    "DataArguments",
    "DispatcherSearch",
    "Figures",
    "Front",
    "Guarantee",
    "LabelledImages",
    "OperatingPoint",
    "PertinenceConfig",
    "PertinenceError",
    "PertinenceForImageClassification",
    "PertinenceImageProcessor",
    "PertinenceOutput",
    "PredictionTable",
    "RoutingMonitor",
    "RuntimeArguments",
    "SearchArguments",
    "SearchResult",
    "Stage",
    "StreamDispatcher",
    "calibrate",
    "evaluate_model",
    "search_predictions",
    "store_guarantee",
]

AutoConfig.register(PertinenceConfig.model_type, PertinenceConfig)
AutoImageProcessor.register(PertinenceConfig, image_processor_classes={"torchvision": PertinenceImageProcessor})
AutoModelForImageClassification.register(PertinenceConfig, PertinenceForImageClassification)


_LAZY = {
    "DataArguments": "arguments",
    "DispatcherSearch": "search",
    "LabelledImages": "data",
    "PredictionTable": "tables",
    "RoutingMonitor": "monitoring",
    "RuntimeArguments": "arguments",
    "SearchArguments": "arguments",
    "SearchResult": "result",
    "StreamDispatcher": "streaming",
    "calibrate": "calibration",
    "evaluate_model": "model_evaluation",
    "search_predictions": "search",
    "store_guarantee": "calibration",
}


def __getattr__(name: str):
    # The search needs datasets and pymoo; running a model does not.
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
