"""Where an expert comes from, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..runtime.entry import GRAPH_BACKENDS, ONNX, ONNX_INT8, QUANTIZATIONS, TORCH, ExpertEntry, backend_name
from ..runtime.sessions import CPU
from ..utils.errors import PertinenceError
from ..utils.hub_errors import check_place
from ..utils.validation import split_revision
from .given import given_model


WEIGHTS = (".pth.tar", ".pth", ".pt", ".ckpt", ".bin", ".safetensors")
"""What names of files of weights end with."""
CONVERT = "`pertinence convert FILE --architecture NAME --labels FILE --image-size N --output-dir D`"


@dataclass(frozen=True)
class LoadOptions:
    """How experts are loaded; fields have the meaning of the arguments of transformers' `from_pretrained`, the last
    ones of those of sentence-transformers and optimum.

    Experts that do not support an `attn_implementation`, such as CNNs, keep their own.

    Attributes:
        backend: "torch", "onnx" or "openvino": what runs the networks; None: what each entry says.
        provider, session_options: of ONNX Runtime, see `SessionSettings`.
        file_name: name of the exported file to run, like "model.onnx".
        fold_batch_norms: whether batch norms are folded into the layers before them, for experts in torch.
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
    backend: str | None = None
    provider: str | None = None
    session_options: Any = None
    file_name: str | None = None
    fold_batch_norms: bool = False

    @classmethod
    def parse(cls, values: dict[str, Any]) -> LoadOptions:
        """Make options from keyword arguments.

        Raises:
            PertinenceError: one is unknown, or two of them contradict each other.
        """
        try:
            return cls(**values)._checked()
        except TypeError as error:
            known = ", ".join(field.name for field in fields(cls))
            raise PertinenceError(f"{error}; experts are loaded with: {known}") from error

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, which stores no token."""
        return {**vars(self), "token": None if isinstance(self.token, str) else self.token}

    def __copy__(self) -> LoadOptions:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadOptions:
        return self  # it is never changed, and a copy that is not stored keeps the token

    def _checked(self) -> LoadOptions:
        of_graphs = [name for name in ("provider", "session_options", "file_name") if getattr(self, name) is not None]
        if of_graphs and self.backend not in GRAPH_BACKENDS:
            raise PertinenceError(
                f"{of_graphs[0]} is a setting of exported graphs: give backend='onnx' with it, or leave it out"
            )
        if self.backend in GRAPH_BACKENDS and str(self.dtype or "float32").removeprefix("torch.") != "float32":
            raise PertinenceError(
                f"dtype={self.dtype!r} cannot be met: exported graphs compute in float32; leave it out, or load with "
                "backend='torch'"
            )
        if self.backend in GRAPH_BACKENDS and self.device_map not in (None, "cpu", {"": "cpu"}):
            raise PertinenceError(
                f"device_map={self.device_map!r} is of torch: exported graphs run where their provider does "
                "(provider='CUDAExecutionProvider'), so leave it out"
            )
        if self.backend in GRAPH_BACKENDS and self.fold_batch_norms:
            raise PertinenceError(
                f"fold_batch_norms is of torch: backend={self.backend!r} folds batch norms itself, so leave it out"
            )
        return self

    def provider_of(self, entry: ExpertEntry) -> str | None:
        """The execution provider that runs the graph of an expert; None: that of the CPU, or it runs none."""
        return None if entry.backend not in (ONNX, ONNX_INT8) or self.provider == CPU else self.provider

    def folds(self, entry: ExpertEntry) -> bool:
        """Whether the batch norms of an expert are folded, if they can be."""
        return self.fold_batch_norms and entry.backend == TORCH

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
        name: its name in tables; default: the last part of `repo_id`.
        label_map: for each label of the pool its index in the expert's own outputs, or "by_name".
        image_size: side, in pixels, of a smaller square input: another, cheaper expert with the same weights.
        image_size_by: "crop": the centre of the original input; "resize": all of it, smaller.
        quantization: "int8": linear layers compute in 8 bits (torch's dynamic quantization, on the CPU).
        backend: name of the backend that runs its network; default: torch.
        model, processor: a loaded model and its image processor, instead of `repo_id`; the model is freed from
            wrappers such as `DataParallel`, put into evaluation mode and frozen.
    """

    repo_id: str | None = None
    revision: str | None = None
    name: str | None = None
    label_map: list[int] | str | None = None
    image_size: int | None = None
    image_size_by: str = "crop"
    quantization: str | None = None
    backend: str | None = None
    model: PreTrainedModel | None = field(default=None, repr=False)
    processor: Any = field(default=None, repr=False)

    @classmethod
    def parse(cls, reference: Any) -> ExpertReference:
        """Parse a Hub id, `id@revision`, a local folder, a mapping of this class's fields, or a loaded model."""
        if isinstance(reference, cls):
            return reference._checked()
        if isinstance(reference, (nn.Module, type)) or hasattr(reference, "model"):
            return cls(model=reference)._checked()
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
            return cls.parse(parsed.repo_id)._updated(reference)._checked() if parsed.repo_id else parsed._checked()
        if not isinstance(reference, (str, Path)) or not str(reference):
            raise PertinenceError(
                f"an expert is a Hub id, a local folder, a mapping or a loaded model, got {type(reference).__name__}"
            )
        text = str(reference)
        if Path(text).is_dir():
            return cls(repo_id=str(Path(text).resolve()))
        if Path(text).is_file() or (text.lower().endswith(WEIGHTS) and text.count("/") != 1):
            raise PertinenceError(f"expert {text!r} is a file, expected a folder or a Hub id: convert it, {CONVERT}")
        if isinstance(reference, Path):
            raise PertinenceError(f"expert {text!r}: there is no such folder")
        repo_id, revision = split_revision(text)
        try:
            check_place(repo_id)
        except PertinenceError as error:
            raise PertinenceError(f"expert {text!r}: {error}") from error
        return cls(repo_id=repo_id, revision=revision)

    def _checked(self) -> ExpertReference:
        """The reference with its model freed from wrappers; raises `PertinenceError` if one part rules out another."""
        title = f"expert {self.name or self._own_name!r}"
        if self.model is None:
            if self.processor is not None:
                raise PertinenceError(
                    f"{title} has a processor beside `repo_id`, which brings its own: leave it out, or give a loaded "
                    "`model` with it"
                )
            if self.revision is not None and self.is_folder:
                raise PertinenceError(f"{title} is a folder, which has no revisions: leave the revision out")
            return self
        if self.revision is not None:
            raise PertinenceError(f"{title} is a loaded model, which has no revisions: leave the revision out")
        return replace(self, model=given_model(self.model, self.name))

    def _updated(self, values: dict[str, Any]) -> ExpertReference:
        values = {key: value for key, value in values.items() if key != "repo_id" and value is not None}
        if self.revision is not None and values.get("revision", self.revision) != self.revision:
            raise PertinenceError(f"expert {self.repo_id!r} is named at two revisions: give one")
        return replace(self, **values)

    @property
    def is_folder(self) -> bool:
        return self.repo_id is not None and Path(self.repo_id).is_absolute()

    @property
    def backend_name(self) -> str:
        """Name of the backend that runs it; raises `PertinenceError` if the reference is ambiguous."""
        if self.quantization is None:
            return TORCH if self.backend is None else self.backend
        title = f"expert {self.name or self._own_name!r}"
        if self.backend is not None:
            raise PertinenceError(f"{title} is given a quantization and a backend: give one of them")
        if self.quantization not in QUANTIZATIONS.values():
            raise PertinenceError(
                f"{title}: quantization={self.quantization!r} is not one of {', '.join(QUANTIZATIONS.values())}"
            )
        return backend_name(self.quantization)

    @property
    def display_name(self) -> str:
        suffix = variant_suffix(self.image_size, self.image_size_by, self.backend_name)
        return self.name or self._own_name + suffix

    @property
    def _own_name(self) -> str:
        return Path(self.repo_id).name if self.repo_id else type(self.model).__name__


def variant_suffix(image_size: int | None, image_size_by: str, backend: str) -> str:
    """The suffix that is added to the name of a checkpoint for a variant made from it."""
    size = "" if image_size is None else f"-{image_size}px" + "-resized" * (image_size_by == "resize")
    return size + ("" if backend == TORCH else f"-{QUANTIZATIONS.get(backend, backend)}")
