"""pertinence: route each image to the cheapest of your image classifiers that is expected to be right."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from ._version import __version__ as __version__
from .hub.configuration import PertinenceConfig
from .models.image_processing_pertinence import PertinenceImageProcessor
from .models.modeling_pertinence import PertinenceForImageClassification, PertinenceOutput
from .routing.front import Front, OperatingPoint, Stage
from .routing.guarantee import Guarantee
from .routing.metrics import Figures
from .routing.promises import Promises
from .utils.errors import PertinenceError


if TYPE_CHECKING:
    from .data.arguments import DataArguments, InputArguments
    from .data.dataset import LabelledImages
    from .evaluation.arguments import ClassificationArguments
    from .evaluation.baselines import register_baseline
    from .evaluation.calibration import calibrate, store_guarantee
    from .evaluation.classify import Classification, classify
    from .evaluation.evaluate import evaluate_model
    from .evaluation.monitoring import RoutingMonitor
    from .evaluation.promising import calibrate_answers, store_promises
    from .experts.backends.base import register_backend
    from .experts.conversion.arguments import ConversionArguments
    from .experts.conversion.convert import Conversion, convert_checkpoint
    from .models.streaming import StreamDispatcher
    from .predictions.arguments import RuntimeArguments
    from .predictions.tables import PredictionTable
    from .routing.budgets import Budget
    from .routing.costs import register_cost
    from .routing.evidence import register_evidence
    from .search.advice import Advice
    from .search.advising import advise
    from .search.arguments import SearchArguments
    from .search.registration import register_recipe
    from .search.result import SearchResult
    from .search.search import DispatcherSearch, search_predictions

__all__ = [
    "Advice",
    "Budget",
    "Classification",
    "ClassificationArguments",
    "Conversion",
    "ConversionArguments",
    "DataArguments",
    "DispatcherSearch",
    "Figures",
    "Front",
    "Guarantee",
    "InputArguments",
    "LabelledImages",
    "OperatingPoint",
    "PertinenceConfig",
    "PertinenceError",
    "PertinenceForImageClassification",
    "PertinenceImageProcessor",
    "PertinenceOutput",
    "PredictionTable",
    "Promises",
    "RoutingMonitor",
    "RuntimeArguments",
    "SearchArguments",
    "SearchResult",
    "Stage",
    "StreamDispatcher",
    "advise",
    "calibrate",
    "calibrate_answers",
    "classify",
    "convert_checkpoint",
    "evaluate_model",
    "register_backend",
    "register_baseline",
    "register_cost",
    "register_evidence",
    "register_recipe",
    "search_predictions",
    "store_guarantee",
    "store_promises",
]

AutoConfig.register(PertinenceConfig.model_type, PertinenceConfig)
AutoImageProcessor.register(PertinenceConfig, image_processor_classes={"torchvision": PertinenceImageProcessor})
AutoModelForImageClassification.register(PertinenceConfig, PertinenceForImageClassification)


_LAZY = {
    "Advice": "search.advice",
    "Budget": "routing.budgets",
    "Classification": "evaluation.classify",
    "ClassificationArguments": "evaluation.arguments",
    "Conversion": "experts.conversion.convert",
    "ConversionArguments": "experts.conversion.arguments",
    "DataArguments": "data.arguments",
    "DispatcherSearch": "search.search",
    "InputArguments": "data.arguments",
    "LabelledImages": "data.dataset",
    "PredictionTable": "predictions.tables",
    "RoutingMonitor": "evaluation.monitoring",
    "RuntimeArguments": "predictions.arguments",
    "SearchArguments": "search.arguments",
    "SearchResult": "search.result",
    "StreamDispatcher": "models.streaming",
    "advise": "search.advising",
    "calibrate": "evaluation.calibration",
    "calibrate_answers": "evaluation.promising",
    "classify": "evaluation.classify",
    "convert_checkpoint": "experts.conversion.convert",
    "evaluate_model": "evaluation.evaluate",
    "register_backend": "experts.backends.base",
    "register_baseline": "evaluation.baselines",
    "register_cost": "routing.costs",
    "register_evidence": "routing.evidence",
    "register_recipe": "search.registration",
    "search_predictions": "search.search",
    "store_guarantee": "evaluation.calibration",
    "store_promises": "evaluation.promising",
}


def __getattr__(name: str) -> Any:
    # The search needs datasets and pymoo; running a model does not.
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
