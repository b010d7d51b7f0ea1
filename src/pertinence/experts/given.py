"""Models that are given loaded: freed from wrappers, and refused in one sentence if they are not such classifiers as
transformers saves and loads again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel

from ..runtime.entry import MODEL_TYPE
from ..utils.errors import PertinenceError, shown


EXPECTED = "a loaded image classifier of transformers (a PreTrainedModel)"


def given_model(model: Any, name: str | None = None) -> PreTrainedModel:
    """The classifier that a user gave loaded, without the wrappers of DataParallel, DistributedDataParallel and
    `torch.compile`.

    Args:
        model: what was given.
        name: name of the expert, for messages; default: that of its class.

    Raises:
        PertinenceError: it is no image classifier of transformers, or has adapters, or was compiled in part.
    """
    wrapper = None
    while isinstance(model, nn.Module) and model is not wrapper:  # one may wrap another
        wrapper, model = model, extract_model_from_parallel(model, keep_torch_compile=False)
    title = f"expert {name or (model.__name__ if isinstance(model, type) else type(model).__name__)!r}"
    if not isinstance(model, PreTrainedModel) or _has_adapters(model):
        raise PertinenceError(f"{title} {_advise(model)}")
    if model.config.model_type == MODEL_TYPE:
        raise PertinenceError(f"{title} is itself a pertinence model: give its experts instead")
    if any("_orig_mod" in module._modules or module._compiled_call_impl for module in model.modules()):
        raise PertinenceError(
            f"{title} is compiled: give it as it was before, and compile the whole model's experts with "
            "`model.compile_experts()`"
        )
    return model


def check_processor(processor: Any, title: str) -> None:
    """Raise `PertinenceError` unless this is an object that transformers can save and load again."""
    if isinstance(processor, (type, nn.Module)) or not hasattr(processor, "save_pretrained"):
        raise PertinenceError(
            f"{title}: its `processor` is {_kind(processor)}, expected an image processor of transformers, such as "
            "AutoImageProcessor.from_pretrained(...)"
        )


def _advise(model: Any) -> str:
    """What something is that is not an image classifier of transformers, and what to give instead."""
    if isinstance(model, (str, Path)):
        return f"has {shown(str(model))} as `model`: give a Hub id or a folder as `repo_id`, without a processor"
    if hasattr(model, "image_processor") and hasattr(model, "model"):
        return 'is a pipeline: give {"model": pipeline.model, "processor": pipeline.image_processor}'
    if not isinstance(model, nn.Module):
        return f"has {_kind(model)} as `model`, expected {EXPECTED}"
    if _has_adapters(model):
        return (
            "has adapters of peft: merge them and give the result, `peft_model.merge_and_unload()`; adapters that "
            "were added to a model of transformers are saved first, and loaded with "
            "`PeftModel.from_pretrained(model, folder)`"
        )
    if hasattr(model, "pretrained_cfg"):
        return (
            "is a network of timm: save it with `timm.models.save_for_hf(network, folder, safe_serialization=True)`, "
            "with the arguments that it was created with as model_args={...}, and give that folder"
        )
    if isinstance(getattr(model, "module", None), nn.Module):
        return f"is wrapped in {_kind(model)}: give what it wraps, its `module`"
    return (
        f"is a {type(model).__module__}.{type(model).__name__}, expected {EXPECTED}: take one from the Hub or from "
        "timm, or write a PreTrainedModel around the network and save it with its code (`register_for_auto_class`)"
    )


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _has_adapters(model: Any) -> bool:
    """Whether peft has wrapped a model, or has put layers of its own into it."""
    return isinstance(model, nn.Module) and any(
        type(module).__module__.partition(".")[0] == "peft" for module in model.modules()
    )


def check_weights(model: PreTrainedModel, title: str) -> None:
    """Raise `PertinenceError` if a model that was given loaded could not be loaded again once it is saved: its weights
    are quantised, not in memory, or others than its config describes."""
    kinds = {type(parameter) for parameter in model.parameters()} - {nn.Parameter}
    if getattr(model.config, "quantization_config", None) is not None or kinds:
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "as its config says"
        raise PertinenceError(
            f"{title} is quantised ({names}): give it unquantised; for 8 bits on the CPU add quantization='int8'"
        )
    state = model.state_dict()
    if any(isinstance(value, torch.Tensor) and value.is_meta for value in state.values()):
        raise PertinenceError(
            f"{title} has weights that are not in memory (on the device `meta`): load it without offloading"
        )
    try:
        with torch.device("meta"):
            described = type(model)(copy.deepcopy(model.config)).state_dict()
    except Exception:  # code of its own may not be made without weights, or take other arguments
        return
    ours, theirs = ({name: getattr(value, "shape", None) for name, value in one.items()} for one in (state, described))
    if different := sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)):
        raise PertinenceError(
            f"{title} has other weights than its config describes ({', '.join(different[:3])}), so it could not be "
            "loaded once it is saved: change its config (such as num_labels), or undo what changed its layers"
        )
