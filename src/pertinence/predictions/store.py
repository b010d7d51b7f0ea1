"""The cache of predictions on disk: one safetensors file per expert and split, with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
import transformers
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..data.dataset import LabelledImages
from ..experts.backends.base import backend_of, libraries_of
from ..experts.base import ExpertLike
from ..runtime.entry import ONNX_INT8
from ..utils.errors import PertinenceError
from ..utils.io import hash_file, replaced
from ..utils.names import file_name
from ..utils.tensors import save_tensors


logger = logging.get_logger(__name__)

STORE_VERSION = 3
ADVICE = "free some space, or choose another --cache-dir; what is finished is kept"


def store_folder(root: Path, expert: ExpertLike, identity: dict[str, Any]) -> Path:
    return root / f"{file_name(expert.entry.name)}-{_digest(identity)[:16]}"


def identify(expert: ExpertLike, images: LabelledImages, device: torch.device) -> dict[str, Any]:
    """Everything that the outputs of an expert depend on.

    Of the device only the kind counts. The batch size, to which all batches are filled up, affects only the last bits.
    It is left out, so that a search that ran out of memory can go on with smaller batches and keep its cache.
    """
    import timm

    entry = expert.entry
    return {
        "store_version": STORE_VERSION,
        "expert": {
            "revision": expert.find_revision(),
            **({"code": dict(expert.entry.code)} if expert.entry.code else {}),
            "transform": entry.transform.to_dict(),
            "quantization": entry.quantization,
            "label_map": entry.label_map,
            **({"graph": entry.exports[0].sha256} if entry.backend == ONNX_INT8 else {}),
            **({"batch_norms": "folded"} if expert.folds_batch_norms else {}),
            **({"provider": expert.provider} if expert.provider else {}),
            **(
                {}
                if entry.is_of_torch
                else {
                    "backend": entry.backend,
                    "version": backend_of(entry).version,
                    **libraries_of(backend_of(entry)),
                }
            ),
        },
        "preprocessing": expert.preprocessing,
        "dtype": str(expert.dtype),
        "device": device.type,
        "images": images.fingerprint,
        "count": len(images),
        "versions": {module.__name__: module.__version__ for module in (torch, torchvision, transformers, timm, PIL)},
    }


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_store(folder: Path, identity: dict[str, Any], with_features: bool) -> dict[str, torch.Tensor] | None:
    """Tensors of a store (memory-mapped), or None if it is absent, stale, damaged, or lacks the features."""
    if not folder.is_dir():
        return None
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
        path = folder / "predictions.safetensors"
        if metadata["identity"] != identity or metadata["fingerprint"] != _digest(identity):
            raise ValueError("it has another identity")
        if metadata["sha256"] != hash_file(path):
            raise ValueError("its fingerprint does not match")
        with safe_open(path, framework="pt") as store:
            if (store.metadata() or {}).get("fingerprint") != metadata["fingerprint"]:
                raise ValueError("it belongs to another expert or split")
            tensors = {key: store.get_tensor(key) for key in store.keys()}  # noqa: SIM118
        if not {len(tensor) for tensor in tensors.values()} == {identity["count"]} or "scores" not in tensors:
            raise ValueError("it has other images")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        logger.warning(f"The predictions in {folder} are stale or damaged ({error}): computing them again.")
        return None
    return tensors if "features" in tensors or not with_features else None


def write_store(folder: Path, identity: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write a store atomically; if another process has just written the same store, that one stays."""
    try:
        with replaced(folder, ADVICE) as temporary:
            temporary.mkdir()
            path, fingerprint = temporary / "predictions.safetensors", _digest(identity)
            save_tensors(tensors, path, {"fingerprint": fingerprint})
            metadata = {"fingerprint": fingerprint, "identity": identity, "sha256": hash_file(path)}
            (temporary / "metadata.json").write_text(json.dumps(metadata, indent=2))
    except OSError as error:
        if _has_fingerprint(folder, identity):
            return
        raise PertinenceError(
            f"predictions cannot be kept in {folder.parent} ({error.strerror}): choose another --cache-dir"
        ) from error


def _has_fingerprint(folder: Path, identity: dict[str, Any]) -> bool:
    try:
        return json.loads((folder / "metadata.json").read_text())["fingerprint"] == _digest(identity)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
