"""Loading the checkpoint of a reference at a pinned revision, and explaining why one cannot be loaded."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import logging

from ..data.labels import Labels, contradiction, read_names
from ..runtime.entry import CONFIG
from ..runtime.transform import Transform
from ..utils.downloads import pin
from ..utils.errors import PertinenceError, causes_of, explain, printable, shown
from ..utils.hub_errors import explain_place
from .audit import check_checkpoint
from .building import building_from
from .checkpoint_files import expert_weights, find_variant, hash_folder
from .given import check_processor, check_weights
from .mending import explain_no_config, explain_no_weights
from .prefixes import load_unwrapped
from .reference import ExpertReference, LoadOptions
from .remote_code import code_references, described_in, fetch_checkpoint, fetch_code


logger = logging.get_logger(__name__)


class Backbone(nn.Module):
    """A network without a classification head, which returns its pooled output as logits."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self.config = model, model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        output = self.model(pixel_values=pixel_values)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            last = output.last_hidden_state
            pooled = last.mean(1) if last.ndim == 3 else last.mean((2, 3))
        return ImageClassifierOutput(logits=pooled.flatten(1))


Classifier = PreTrainedModel | Backbone


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: classifier, image processor, pinned revision (commit or content hash), folder, folders of
    its code in other repositories (see `fetch_code`), how it was loaded, without the token, and networks that were
    derived from the classifier, which experts share, by what was done."""

    model: Classifier
    processor: Any
    revision: str
    folder: Path | None
    code: Mapping[str, Path] = field(default_factory=dict)
    options: LoadOptions = field(default_factory=LoadOptions)
    derived: dict[str, Classifier] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> Labels:
        """The names of its outputs (see `read_names`)."""
        return read_names(self.model.config.id2label, self.model.config.num_labels)

    def call_options(self, transform: Transform) -> dict[str, bool]:
        """Arguments of the model's call besides pixels (see `size_options`)."""
        return size_options(self.model) if transform.is_smaller else {}


def open_checkpoint(
    reference: ExpertReference,
    options: LoadOptions,
    is_stem: bool = False,
    opened: dict[Any, Checkpoint] | None = None,
    code: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Load the checkpoint of a reference, or take it from `opened`.

    Args:
        reference: where the checkpoint comes from.
        options: how it is loaded.
        is_stem: whether it may lack a classification head.
        opened: checkpoints that are already loaded, so that experts that differ only in their input share weights; a
            newly loaded one is added.
        code: commits of other repositories that its code is in; others are pinned to their newest one.

    Raises:
        PertinenceError: it cannot be found or loaded, or lacks weights.
    """
    given = reference.model is not None
    key = (id(reference.model), id(reference.processor)) if given else (reference.repo_id, reference.revision)
    opened = {} if opened is None else opened
    if key not in opened:
        opened[key] = _load_checkpoint(reference, options, is_stem, code or {})
    return opened[key]


def _load_checkpoint(
    reference: ExpertReference, options: LoadOptions, is_stem: bool, pinned: Mapping[str, str]
) -> Checkpoint:
    """Load the checkpoint of a reference, see `open_checkpoint`."""
    title = f"{'stem' if is_stem else 'expert'} {reference.display_name!r}"
    if reference.model is not None:
        processor = reference.processor or _timm_processor(reference.model.config)
        if processor is None:
            raise PertinenceError(
                f"{title} is a loaded model without an image processor: pass "
                '{"model": model, "processor": processor}'
            )
        check_processor(processor, title)
        check_weights(reference.model, title)
        return Checkpoint(
            reference.model, processor, _hash_tensors(reference.model), None, options=replace(options, token=None)
        )
    repo_id = reference.repo_id
    assert repo_id is not None  # every reference without a loaded model has one
    folder = None
    try:
        folder, revision = _find_files(repo_id, reference.revision, options)
        if not expert_weights(folder):
            raise PertinenceError(explain_no_weights(repo_id, revision, options))
        code = fetch_code(folder, pinned, options) if options.trust_remote_code else {}
        model, processor, missing = _load_folder(folder, options, is_stem, code)
    except PertinenceError as error:
        raise PertinenceError(f"{title}: {error}") from error
    except Exception as error:  # a faulty checkpoint may raise anything
        raise PertinenceError(_explain(title, repo_id, reference.revision, options, folder, error)) from error
    if missing:
        raise PertinenceError(
            f"{title} lacks weights ({', '.join(sorted(missing)[:3])}): it is a backbone without a trained "
            "classification head; fine-tune it first"
        )
    return Checkpoint(model, processor, revision, folder, code, replace(options, token=None))


def check_exists(reference: ExpertReference, options: LoadOptions) -> None:
    """Raise `PertinenceError` unless there is a checkpoint where a reference says; nothing is loaded."""
    repo_id = reference.repo_id
    if repo_id is None:
        return
    title = f"expert {reference.display_name!r}"
    try:
        _pinned(repo_id, reference.revision, options)
    except PertinenceError as error:
        raise PertinenceError(f"{title}: {error}") from error
    except Exception as error:  # as of `open_checkpoint`
        raise PertinenceError(_explain(title, repo_id, reference.revision, options, None, error)) from error


def _find_files(repo_id: str, revision: str | None, options: LoadOptions) -> tuple[Path, str]:
    """The folder with the files of a checkpoint, downloaded if necessary, and their pinned revision."""
    commit = _pinned(repo_id, revision, options)
    if commit is None:
        return Path(repo_id), hash_folder(Path(repo_id))
    return fetch_checkpoint(repo_id, commit, options), commit


def _pinned(repo_id: str, revision: str | None, options: LoadOptions) -> str | None:
    """The commit of a checkpoint on the Hub; None for a folder, which must have a config."""
    if not Path(repo_id).is_absolute():
        return pin(repo_id, revision, CONFIG, **options.hub)
    if not (Path(repo_id) / CONFIG).is_file():
        raise PertinenceError(explain_no_config(repo_id, None, options))
    return None


def _load_folder(
    folder: Path, options: LoadOptions, is_stem: bool, code: Mapping[str, Path]
) -> tuple[PreTrainedModel | Backbone, Any, set[str]]:
    """Check and load a checkpoint from its folder.

    A repository of the Hub is also loaded from its folder, in the cache: given its id, transformers would prefer a
    local directory of the same name.

    Returns:
        The model, its image processor, and the names of parameters that the files lack.
    """
    tensors = check_checkpoint(folder, options.trust_remote_code)
    shared = {**options.hub, "trust_remote_code": options.trust_remote_code}
    with described_in(folder, code) as described:
        config = AutoConfig.from_pretrained(described, **shared)
        if (getattr(config, "model_args", None) or {}).get("num_classes") is not None:
            # timm >= 1.0.31 records `num_classes`, and TimmWrapper then passes it to timm twice.
            config.model_args = {key: value for key, value in config.model_args.items() if key != "num_classes"}
        is_headless = is_stem and _is_headless(config)
        load = partial(
            _model_class(AutoModel if is_headless else AutoModelForImageClassification, config, described, code),
            folder,
            use_safetensors=True,
            variant=find_variant(folder),
            output_loading_info=True,
            **options.weights,
            **shared,
        )
        load = partial(_load_as_asked, partial(_load_for_any_size, load, config), options.attn_implementation)
        with building_from(tensors):
            model, info = load()
            if info["missing_keys"]:
                model, info = load_unwrapped(load, tensors.shapes, model, info)
        processor = _timm_processor(config) or AutoImageProcessor.from_pretrained(described, **shared)
    return Backbone(model) if is_headless else model, processor, info["missing_keys"]


def load_processor(folder: Path, options: LoadOptions) -> Any:
    """The image processor of a checkpoint of transformers; raises `PertinenceError` if it cannot be loaded."""
    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    except Exception as error:  # it may have code of its own, which may raise anything
        raise PertinenceError(f"its image processor in {folder} cannot be loaded ({explain(error)})") from error


def _model_class(auto: Any, config: Any, described: Path, code: Mapping[str, Path]) -> Callable[..., Any]:
    """The function that loads a model: that of an Auto class, or of the class in the code of the checkpoint."""
    reference = (getattr(config, "auto_map", None) or {}).get(auto.__name__)
    package = type(config).__module__.partition(".")[0]
    # The Auto class would take the first class that was loaded with the same code of a config. A class that this
    # process registered has precedence, as in transformers.
    runs_code = package == "transformers_modules" or (code and package == "transformers")
    if reference is None or not runs_code:
        return auto.from_pretrained
    own: Any = get_class_from_dynamic_module(reference, str(described))
    return own.from_pretrained


def _load_as_asked(load: Callable[..., Any], attention: str | None, **options: Any) -> Any:
    """Load a model with an attention implementation, or with its own if it does not support that one."""
    if attention is not None:
        try:
            return load(attn_implementation=attention, **options)
        except ValueError as error:  # raised before anything is loaded
            if "does not support" not in str(error):
                raise
    return load(**options)


def _load_for_any_size(load: Callable[..., Any], config: Any, **options: Any) -> Any:
    """Load a model so that it accepts images of other sizes, if it is one of timm's that can interpolate its position
    embeddings; at its own size this changes nothing."""
    chosen = getattr(config, "model_args", None) or {}
    if config.model_type == "timm_wrapper" and "dynamic_img_size" not in chosen:
        movable = copy.deepcopy(config)
        movable.model_args = {**chosen, "dynamic_img_size": True}
        try:
            model, info = load(config=movable, **options)
            model.config.model_args = config.model_args  # which say what was chosen, as `fitting_transform` reads it
            return model, info
        except TypeError as error:  # raised before anything is loaded
            if "dynamic_img_size" not in str(error):
                raise
    return load(config=config, **options)


def size_options(model: nn.Module) -> dict[str, bool]:
    """Arguments of a model's call for images of another size than it was made for: none for most models, including
    those of timm, which are loaded for any size."""
    accepted = inspect.signature(model.forward).parameters
    return {name: True for name in ("interpolate_pos_encoding",) if name in accepted}


def _is_headless(config: Any) -> bool:
    """Whether a checkpoint has no classification head: timm has no classes, transformers names a bare model."""
    return config.num_labels == 0 or any(name.endswith("Model") for name in config.architectures or ())


def check_single_label(name: str, checkpoint: Checkpoint) -> None:
    """Refuse what is no classifier that chooses one of several labels."""
    config, labels = checkpoint.model.config, checkpoint.labels
    count = config.num_labels
    if count is None:
        raise PertinenceError(f"the labels of expert {name!r} are unknown: name them by `id2label` in its config")
    if config.problem_type in ("multi_label_classification", "regression") or count < 2:
        kind = config.problem_type or f"{count} output(s)"
        raise PertinenceError(
            f"expert {name!r} is not a single-label classifier ({kind.replace('_', ' ')}): pertinence routes only "
            "classifiers that choose one of at least two labels"
        )
    if set(labels) != set(range(count)):
        raise PertinenceError(
            f"expert {name!r} numbers its labels {shown(list(labels))}, expected 0 to {count - 1}: correct "
            "`id2label` in its config.json"
        )
    if (trouble := contradiction(labels, config.label2id)) is not None:
        logger.warning(f"The config.json of expert {name!r} contradicts itself ({trouble}): id2label is used.")


def check_channels(name: str, config: Any) -> None:
    """Refuse networks whose images do not have three channels."""
    arguments, pretrained = (getattr(config, key, None) or {} for key in ("model_args", "pretrained_cfg"))
    shape = pretrained.get("input_size")
    channels = getattr(config, "num_channels", None) or arguments.get("in_chans")
    if channels is None and isinstance(shape, (list, tuple)) and shape:
        channels = shape[0]
    if channels not in (None, 3):
        raise PertinenceError(f"expert {name!r} takes images of {shown(channels)} channels, expected 3 (RGB)")


def _explain(
    title: str, repo_id: str, revision: str | None, options: LoadOptions, folder: Path | None, error: Exception
) -> str:
    """Explain why a checkpoint does not load, by the text of errors, as transformers and timm raise general types."""
    causes = causes_of(error)
    if any("trust_remote_code" in str(cause) for cause in causes):
        elsewhere = {printable(repository): None for repository, _ in code_references(folder)} if folder else {}
        return (
            f"{title} needs code of its own from {', '.join(elsewhere) or repo_id}: read it, and if you trust it pass "
            "--trust-remote-code (in Python trust_remote_code=True)"
        )
    if any(isinstance(cause, RemoteEntryNotFoundError) for cause in causes):
        return f"{title}: {explain_no_config(repo_id, revision, options)}"
    if (trouble := explain_place(repo_id, revision, error)) is not None:
        return f"{title}: {trouble}"
    if any("no classifier head" in str(cause) for cause in causes):
        return f"{title} is a backbone without a trained classification head; fine-tune it first"
    if any("Can't load image processor" in str(cause) for cause in causes):
        return (
            f"{title}: {repo_id} has no preprocessor_config.json: save the image processor that it was trained with "
            "beside the weights, `AutoImageProcessor.from_pretrained(BASE).save_pretrained(FOLDER)`"
        )
    if any("ignore_mismatched_sizes" in str(cause) for cause in causes):
        return f"{title}: weights and config.json of {repo_id} do not have the same shapes"
    return f"{title} cannot be loaded from {repo_id} ({explain(error)})"


def _timm_processor(config: Any) -> Any:
    """The image processor of a timm model, which is described in config.json; None for other models."""
    if config.model_type != "timm_wrapper":
        return None
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    return TimmWrapperImageProcessor(config.pretrained_cfg, architecture=config.architecture)


def _hash_tensors(model: PreTrainedModel) -> str:
    digest = hashlib.sha256(str(model.config.to_json_string()).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
