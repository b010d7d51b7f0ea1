"""Pooled features of a classifier: the input of its final classification layer, wherever that is."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from ..utils.errors import MALFORMED, PertinenceError, explain
from .loading import Backbone, Classifier


class FeatureTap:
    """Reads the input of a classifier's final classification layer.

    That layer is found by its function, not by its name: it is the last to run of all linear layers and convolutions
    with one output per label. Logits replace the features of a model without such a layer, and those of a backbone,
    whose logits are its pooled output.
    """

    def __init__(self, model: Classifier | None = None):
        # The layers reference the tap, so the tap does not reference the model: a deleted model is freed at once.
        self.seen = threading.local()  # one model may be called from several threads
        if model is None or isinstance(model, Backbone):
            return
        for module in model.modules():
            outputs = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and outputs == model.config.num_labels:
                module.register_forward_pre_hook(self._remember)

    @classmethod
    def of(cls, model: Classifier) -> FeatureTap:
        """The tap of a model; experts made from the same model share it."""
        tap = vars(model).get("_feature_tap")
        if tap is None:
            tap = vars(model)["_feature_tap"] = cls(model)
        return tap

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureTap, ()  # the state of a thread is not copied, and the layers keep their hooks

    def _remember(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if getattr(self.seen, "is_running", False):  # only during `run`: the model may also be called otherwise
            self.seen.is_linear, self.seen.input = isinstance(module, nn.Linear), inputs[0]

    def run(self, model: Classifier, pixel_values: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the classifier on images: logits (b, C) and pooled features (b, F)."""
        self.seen.input, self.seen.is_running = None, True
        try:
            logits = model(pixel_values=pixel_values, **options).logits
        except torch.OutOfMemoryError:
            raise
        except (*MALFORMED, RuntimeError) as error:  # settings of a checkpoint may not fit its network
            kind, shape = type(getattr(model, "timm_model", model)).__name__, tuple(pixel_values.shape)
            raise PertinenceError(f"its {kind} fails on pixels of shape {shape} ({explain(error)})") from error
        finally:
            self.seen.is_running = False
        features, self.seen.input = self.seen.input, None
        if features is None:
            return logits, logits
        if features.ndim > 2:
            first, last = (1, features.ndim - 1) if self.seen.is_linear else (2, features.ndim)
            positions = tuple(range(first, last))
            features = features.mean(positions)
        return logits, features
