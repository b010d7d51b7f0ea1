"""What an expert is loaded from: references, pinned revisions, content hashes, and why a checkpoint does not load."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import logging

from ..utils.downloads import chain, explain_hub, fetch, pin
from ..utils.errors import PertinenceError, explain
from ..utils.io import MAX_YAML, parse_yaml
from ..utils.validation import LONGEST_NAME, split_revision
from .audit import building_from, check_checkpoint


logger = logging.get_logger(__name__)

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.py")
"""What an expert is loaded from; the content hash of a folder covers these."""
LEGAL_FILES = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*")
"""What goes along where an expert is copied: most licences ask for it."""


@dataclass(frozen=True)
class LoadOptions:
    """How experts are loaded; every field means what it means in transformers' `from_pretrained`.

    Experts that do not know an `attn_implementation`, CNNs above all, keep their own.
    """

    dtype: str | torch.dtype | None = None
    device_map: Any = None
    disable_mmap: bool | None = None
    attn_implementation: str | None = None
    token: str | bool | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    force_download: bool = False
    trust_remote_code: bool = False

    @classmethod
    def parse(cls, values: dict[str, Any]) -> LoadOptions:
        """From keyword arguments; raises `PertinenceError` for an unknown one."""
        try:
            return cls(**values)
        except TypeError as error:
            known = ", ".join(field.name for field in fields(cls))
            raise PertinenceError(f"{error}; experts are loaded with: {known}") from error

    @property
    def hub(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in ("token", "cache_dir", "local_files_only", "force_download")}
        return {name: value for name, value in options.items() if value}

    @property
    def weights(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in ("dtype", "device_map", "disable_mmap")}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class ExpertReference:
    """Where an expert comes from.

    Attributes:
        repo_id: Hub id or local folder; None for a loaded model.
        revision: branch, tag or commit of a Hub repository.
        name: how tables call it; by default the last part of `repo_id`.
        label_map: for each label of the pool its index in the expert's own outputs, or "by_name".
        image_size: pixels of a smaller square that the expert is given: another, cheaper expert with the same weights.
        image_size_by: "crop": the middle of what the expert was made for; "resize": all of it, smaller.
        quantization: "int8": linear layers compute in 8 bits (torch's dynamic quantization, on the CPU).
        model, processor: a loaded model and its image processor, in place of `repo_id`; the model is put in evaluation
            mode and frozen.
    """

    repo_id: str | None = None
    revision: str | None = None
    name: str | None = None
    label_map: list[int] | str | None = None
    image_size: int | None = None
    image_size_by: str = "crop"
    quantization: str | None = None
    model: PreTrainedModel | None = field(default=None, repr=False)
    processor: Any = field(default=None, repr=False)

    @classmethod
    def parse(cls, reference: Any) -> ExpertReference:
        """A Hub id, `id@revision`, a local folder, a mapping of this class's fields, or a loaded model."""
        if isinstance(reference, cls):
            return reference
        if isinstance(reference, PreTrainedModel):
            return cls(model=reference)
        if isinstance(reference, dict):
            try:
                parsed = cls(**reference)
            except TypeError as error:
                known = ", ".join(cls.__dataclass_fields__)
                raise PertinenceError(
                    f"an expert's mapping is not understood ({error}); known keys: {known}"
                ) from error
            if (parsed.repo_id is None) == (parsed.model is None):
                raise PertinenceError("an expert's mapping needs either `repo_id` or `model`")
            return cls.parse(parsed.repo_id)._updated(reference) if parsed.repo_id else parsed
        if not isinstance(reference, (str, Path)) or not str(reference):
            raise PertinenceError(
                f"an expert is a Hub id, a local folder, a mapping or a loaded model, got {type(reference).__name__}"
            )
        text = str(reference)
        if Path(text).is_dir():
            return cls(repo_id=str(Path(text).resolve()))
        if isinstance(reference, Path) or text.startswith((".", "/", "~")):
            raise PertinenceError(f"expert {text!r}: there is no such folder")
        repo_id, revision = split_revision(text)
        return cls(repo_id=repo_id, revision=revision)

    def _updated(self, values: dict[str, Any]) -> ExpertReference:
        values = {key: value for key, value in values.items() if key != "repo_id" and value is not None}
        if self.revision is not None and values.get("revision", self.revision) != self.revision:
            raise PertinenceError(f"expert {self.repo_id!r} is named at two revisions: give one")
        return replace(self, **values)

    @property
    def is_folder(self) -> bool:
        return self.repo_id is not None and Path(self.repo_id).is_absolute()

    @property
    def display_name(self) -> str:
        own = Path(self.repo_id).name if self.repo_id else type(self.model).__name__
        return self.name or own + variant_suffix(self.image_size, self.image_size_by, self.quantization)


def variant_suffix(image_size: int | None, image_size_by: str, quantization: str | None) -> str:
    """What is added to the name of a checkpoint for an expert that is made from it."""
    size = "" if image_size is None else f"-{image_size}px" + "-resized" * (image_size_by == "resize")
    return size + (f"-{quantization}" if quantization else "")


class Backbone(nn.Module):
    """A network without a classification head: its pooled output stands where a classifier has its logits."""

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


@dataclass(frozen=True)
class Checkpoint:
    """What a reference leads to: classifier, image processor, pinned revision (commit, or content hash), folder."""

    model: PreTrainedModel | Backbone
    processor: Any
    revision: str
    folder: Path | None


def open_checkpoint(
    reference: ExpertReference,
    options: LoadOptions,
    is_stem: bool = False,
    opened: dict[Any, Checkpoint] | None = None,
) -> Checkpoint:
    """What a reference leads to: loaded, or taken from `opened`, where it is noted.

    Args:
        reference: where it comes from.
        options: how it is loaded.
        is_stem: whether it may be without a classification head.
        opened: what is loaded already, so that experts that differ only in their input share their weights.

    Raises:
        PertinenceError: it cannot be found or loaded, or lacks weights.
    """
    given = reference.model is not None
    key = (id(reference.model), id(reference.processor)) if given else (reference.repo_id, reference.revision)
    opened = {} if opened is None else opened
    if key not in opened:
        opened[key] = _load_checkpoint(reference, options, is_stem)
    return opened[key]


def _load_checkpoint(reference: ExpertReference, options: LoadOptions, is_stem: bool = False) -> Checkpoint:
    """Load what a reference leads to, as `open_checkpoint` does."""
    title = f"{'stem' if is_stem else 'expert'} {reference.display_name!r}"
    if reference.model is not None:
        processor = reference.processor or _timm_processor(reference.model.config)
        if processor is None:
            raise PertinenceError(
                f"{title} is a loaded model without an image processor: pass "
                '{"model": model, "processor": processor}'
            )
        return Checkpoint(reference.model, processor, _hash_tensors(reference.model), None)
    folder = Path(reference.repo_id) if reference.is_folder else None
    if folder is not None and not (folder / "config.json").is_file():
        raise PertinenceError(f"{title}: the folder {folder} has no config.json, so it is not a checkpoint")
    try:
        if folder is not None:
            revision = hash_folder(folder)
        else:
            revision = pin(reference.repo_id, reference.revision, "config.json", **options.hub)
            # By its folder from here on: transformers would prefer a local directory that happens to have the same
            # name.
            folder = fetch(reference.repo_id, revision, CHECKPOINT_FILES + LEGAL_FILES, **options.hub)
        tensors = check_checkpoint(folder, options.trust_remote_code)
        shared = {**options.hub, "trust_remote_code": options.trust_remote_code}
        config = AutoConfig.from_pretrained(folder, **shared)
        if (getattr(config, "model_args", None) or {}).get("num_classes") is not None:
            # timm >= 1.0.31 records it, and TimmWrapper then passes it to timm twice.
            config.model_args = {key: value for key, value in config.model_args.items() if key != "num_classes"}
        is_headless = is_stem and _is_headless(config)
        load = partial(
            (AutoModel if is_headless else AutoModelForImageClassification).from_pretrained,
            folder,
            use_safetensors=True,
            output_loading_info=True,
            **options.weights,
            **shared,
        )
        with nullcontext() if tensors is None else building_from(tensors):
            model, info = _load_as_asked(partial(_load_for_any_size, load, config), options.attn_implementation)
        processor = _timm_processor(config) or AutoImageProcessor.from_pretrained(folder, **shared)
    except PertinenceError as error:
        raise PertinenceError(f"{title}: {error}") from error
    except Exception as error:  # a checkpoint of somebody else's can fail in any way; say which and why
        raise PertinenceError(_explain(title, reference, error)) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise PertinenceError(
            f"{title} lacks weights ({missing}): it is a backbone without a trained classification head; "
            "fine-tune it first"
        )
    return Checkpoint(Backbone(model) if is_headless else model, processor, revision, folder)


def _load_as_asked(load: Callable[..., Any], attention: str | None) -> Any:
    """Load a model that attends in a certain way, or in its own where it does not know that one."""
    if attention is not None:
        try:
            return load(attn_implementation=attention)
        except ValueError as error:  # before anything is loaded
            if "does not support" not in str(error):
                raise
    return load()


def _load_for_any_size(load: Callable[..., Any], config: Any, **options: Any) -> Any:
    """Load a model whose positions move to images of another size, where it is one of timm's that can do so, and was
    not made without; at its own size that changes nothing."""
    chosen = getattr(config, "model_args", None) or {}
    if config.model_type == "timm_wrapper" and "dynamic_img_size" not in chosen:
        movable = copy.deepcopy(config)
        movable.model_args = {**chosen, "dynamic_img_size": True}
        try:
            return load(config=movable, **options)
        except TypeError as error:  # before anything is loaded
            if "dynamic_img_size" not in str(error):
                raise
    return load(config=config, **options)


def size_options(model: nn.Module) -> dict[str, bool]:
    """With what a model is called where its images have another size than it was made for: nothing for most, and for
    those of timm, which are loaded for it."""
    accepted = inspect.signature(model.forward).parameters
    return {name: True for name in ("interpolate_pos_encoding",) if name in accepted}


def _is_headless(config: Any) -> bool:
    """Whether a checkpoint has no classification head: timm counts no classes, transformers names a bare model."""
    return config.num_labels == 0 or any(name.endswith("Model") for name in config.architectures or ())


def _explain(title: str, reference: ExpertReference, error: Exception) -> str:
    causes = chain(error)
    if any("trust_remote_code" in str(cause) for cause in causes):
        return (
            f"{title} needs code of its own from {reference.repo_id}: read it, and if you trust it pass "
            "--trust-remote-code (in Python trust_remote_code=True)"
        )
    if (trouble := explain_hub(reference.repo_id, reference.revision, error)) is not None:
        return f"{title}: {trouble}"
    if any("no classifier head" in str(cause) for cause in causes):
        return f"{title} is a backbone without a trained classification head; fine-tune it first"
    if any("model.safetensors" in str(cause) for cause in causes):
        return (
            f"{title}: {reference.repo_id} has no weights in safetensors; pickles (pytorch_model.bin) are "
            "never opened: convert them"
        )
    if any("ignore_mismatched_sizes" in str(cause) for cause in causes):
        return f"{title}: weights and config.json of {reference.repo_id} do not have the same shapes"
    return f"{title} cannot be loaded from {reference.repo_id} ({explain(error)})"


def _timm_processor(config: Any) -> Any:
    """timm keeps an image processor in config.json; None for other models."""
    if config.model_type != "timm_wrapper":
        return None
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    return TimmWrapperImageProcessor(config.pretrained_cfg, architecture=config.architecture)


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a folder that an expert is loaded from, sorted."""
    return sorted(path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern) if path.is_file())


def hash_folder(folder: Path) -> str:
    """Content hash of a checkpoint: sha256 over the names and bytes of the files that it is loaded from."""
    found = [(path, path.stat()) for path in checkpoint_files(folder)]
    return _hash_files(tuple((path, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for path, s in found))


@lru_cache(maxsize=1024)
def _hash_files(files: tuple[tuple[Path, int, int, int, int], ...]) -> str:
    """They are read once as long as they stay as they are: a lazy expert comes again and again."""
    digest = hashlib.sha256()
    for path, size, *_ in files:
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return f"sha256:{digest.hexdigest()}"


def _hash_tensors(model: nn.Module) -> str:
    digest = hashlib.sha256(str(model.config.to_json_string()).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def card_metadata(card: Path) -> dict[str, Any]:
    """The metadata at the head of a model card."""
    with card.open(encoding="utf-8") as file:
        block = re.match(r"\s*---\r?\n(.*?)\n---", file.read(MAX_YAML), re.DOTALL)
    return (parse_yaml(block[1]) or {}) if block else {}


def read_licence(checkpoint: Checkpoint, title: str) -> str | None:
    """Licence that a checkpoint states: on its card, else in timm's `pretrained_cfg`; None where it states none.

    Several are separated by commas; one that the Hub has no identifier for goes by the name that the card gives it.
    """
    licence = None
    try:
        card = checkpoint.folder and checkpoint.folder / "README.md"
        if card is not None and card.is_file():
            values = card_metadata(card)
            licence = values.get("license")
            if licence == "other":
                licence = values.get("license_name") or licence
    except Exception as error:  # a licence is worth showing, not worth failing for
        logger.info(f"The licence of expert {title!r} is unknown: {error}")
    licence = licence or (getattr(checkpoint.model.config, "pretrained_cfg", None) or {}).get("license")
    # A card may say anything; what is stored is one line.
    names = [name for name in (licence if isinstance(licence, list) else [licence]) if isinstance(name, str)]
    return " ".join(", ".join(names).split())[:LONGEST_NAME] or None
