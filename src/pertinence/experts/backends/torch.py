"""The built-in backends: the network of a checkpoint in torch, and the same with linear layers in 8 bits."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any, ClassVar

import torch
from torch import nn

from ...runtime.entry import ExpertEntry
from ...utils.errors import PertinenceError
from ...utils.modules import execution_device, first_parameter
from ..features import FeatureTap
from ..folding import folded_network
from ..loading import Checkpoint, Classifier


ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters


class TorchBackend(nn.Module):
    """The network as transformers loads it; experts of one checkpoint share it.

    Attributes:
        model: the classifier.
        is_convolutional: whether it is laid out with channels last.
    """

    version: ClassVar[int] = 1
    devices: ClassVar[tuple[str, ...] | None] = None
    fixed_dtype: ClassVar[torch.dtype | None] = None
    compiles: ClassVar[bool] = True

    def __init__(self, checkpoint: Checkpoint, entry: ExpertEntry):
        super().__init__()
        self.is_convolutional = is_convolutional(checkpoint.model)
        checkpoint.model.to(memory_format=self.memory_format)  # type: ignore[call-arg]  # transformers hides `self`
        folds = checkpoint.options.folds(entry)
        self.model = self.prepared(folded_network(checkpoint, entry) if folds else checkpoint.model)
        self._options = checkpoint.call_options(entry.transform)
        self._features = FeatureTap.of(self.model)

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory layout of the network; not an attribute, because `torch.save` cannot store it."""
        return torch.channels_last if self.is_convolutional else torch.contiguous_format

    def prepared(self, model: Classifier) -> Classifier:
        """The module to run, made from a checkpoint's classifier."""
        return model

    @classmethod
    def is_offered(cls, checkpoint: Checkpoint, cost_depends: bool, device: torch.device) -> bool:
        return False

    @property
    def device(self) -> torch.device:
        return _place(self.model)[0]

    @property
    def dtype(self) -> torch.dtype:
        return _place(self.model)[1]

    @property
    def memory(self) -> int:
        found: dict[int, int] = {}
        for value in self.model.state_dict().values():
            for tensor in value if isinstance(value, tuple) else [value]:  # 8-bit layers pack weight and bias
                if isinstance(tensor, torch.Tensor):
                    found[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return sum(found.values())

    def run(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.model.training:
            raise PertinenceError(
                f"an expert ({type(self.model).__name__}) is in training mode, where a network answers differently: "
                "call its eval()"
            )
        pixel_values = pixel_values.to(*_place(self.model), memory_format=self.memory_format)
        return self._features.run(self.model, pixel_values, **self._options)

    def compile(self, **options: Any) -> None:
        # Otherwise all experts that share code, as those of timm do, would share one limit of recompilations, and the
        # last ones of a large pool would stay eager.
        isolated = {"isolate_recompiles": True} if ISOLATES else {}
        self.model.compile(**isolated, **options)


class TorchInt8Backend(TorchBackend):
    """A copy of the network whose linear layers, except the last, compute in 8 bits: torch's dynamic quantization."""

    devices: ClassVar[tuple[str, ...] | None] = ("cpu",)
    fixed_dtype: ClassVar[torch.dtype | None] = torch.float32  # between its 8-bit layers

    def prepared(self, model: Classifier) -> Classifier:
        """Quantize the layers; raises `PertinenceError` if there are none."""
        names = _linear_layers(model)
        if not names:
            raise PertinenceError(
                f"{type(model).__name__} has no linear layer before its last, so there is nothing to compute in 8 "
                "bits: leave quantization out"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch recommends torchao, whose 8-bit linear layers are slower on CPUs
            from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic

            layers = dict.fromkeys(names, default_dynamic_qconfig)
            return quantize_dynamic(copy.deepcopy(model).float().cpu(), layers)

    @classmethod
    def is_offered(cls, checkpoint: Checkpoint, cost_depends: bool, device: torch.device) -> bool:
        return cost_depends and device.type == "cpu" and bool(_linear_layers(checkpoint.model))


def is_convolutional(model: nn.Module) -> bool:
    """Whether a network has convolutions that run faster in the channels-last format; those that only cut an image
    into patches do not count."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where and in which dtype a network computes now: its parameters may have been replaced."""
    found = first_parameter(model)
    return (torch.device("cpu"), torch.float32) if found is None else (execution_device(*found), found[1].dtype)


def _linear_layers(model: Classifier) -> list[str]:
    """Names of a classifier's linear layers, except those with one output for each label."""
    labels = model.config.num_labels
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features != labels
    ]
