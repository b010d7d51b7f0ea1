"""Exported graphs: what a saved model records about each, and the files themselves, which are checked before use."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..utils.errors import MALFORMED, PertinenceError, explain, shown
from ..utils.validation import is_number, is_whole


FLOAT32, INT8 = "float32", "int8"
PRECISIONS = (FLOAT32, INT8)
FOLDER = "onnx"
FILES = {FLOAT32: "model.onnx", INT8: "model_qint8.onnx"}
"""Names of the files of an expert in its folder `onnx`, by precision; those of sentence-transformers."""
FILE = re.compile(rf"experts/([0-9]{{1,3}}|stem)/{FOLDER}/\w[\w.-]{{0,100}}\.onnx")
OUTSIDE = re.compile(rb"(?:\x08|\x88\x80{0,8}\x00)location")
"""The key "location" in protobuf: its length, 8, and its letters. A length may be padded with zeros, to ten bytes. The
tag before it is not looked for, as fields may be in any order and written in several ways."""
MAX_BYTES = 2**31
"""Largest size of a graph: that of a message of protobuf."""
INPUT, LOGITS, FEATURES = "pixel_values", "logits", "features"
"""Names of the input and the outputs of a graph."""


@dataclass(frozen=True)
class Agreement:
    """How far a graph agrees with the network that it was exported from, on real images.

    Attributes:
        images: how many.
        largest_difference: largest absolute difference of two logits.
        same_answers: share of the images with the same answer; those whose two largest logits differ by less than
            0.002 count as the same.
    """

    images: int
    largest_difference: float
    same_answers: float

    def __str__(self) -> str:
        return (
            f"{100 * self.same_answers:.2f} % the same answers on {self.images} images, logits within "
            f"{self.largest_difference:.2g}"
        )


@dataclass(frozen=True)
class HostPixels:
    """What changes if Pillow instead of torchvision resizes the images of an expert, measured on real images.

    Attributes:
        images: how many.
        equal_pixels: share of the values at the network's input that are equal.
        largest_difference: largest absolute difference of two values at the network's input.
        same_answers: share of the images with the same answer.
    """

    images: int
    equal_pixels: float
    largest_difference: float
    same_answers: float

    def __str__(self) -> str:
        return f"{100 * self.same_answers:.2f} % the same answers on {self.images} images that Pillow resized"


@dataclass(frozen=True)
class Export:
    """An exported graph of an expert.

    Attributes:
        file: its path in the folder of the model.
        sha256: hash of its content.
        revision: revision of the expert that it was exported from.
        opset: version of ONNX's operators.
        input_shape: (3, height, width) of its input; the batch is of any size.
        precision: "float32" or "int8".
        has_features: whether its second output are the pooled features.
        agreement: how far it agrees with the network; None if that was not measured.
        host_pixels: what preprocessing without torch changes; None if that was not measured.
        unknown: keys that this version does not know; they are kept.
    """

    file: str
    sha256: str
    revision: str
    opset: int
    input_shape: tuple[int, int, int]
    precision: str = FLOAT32
    has_features: bool = False
    agreement: Agreement | None = None
    host_pixels: HostPixels | None = None
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        checks = {
            "file": isinstance(self.file, str) and FILE.fullmatch(self.file),
            "sha256": isinstance(self.sha256, str) and re.fullmatch("[0-9a-f]{64}", self.sha256),
            "revision": isinstance(self.revision, str) and self.revision.isprintable(),
            "opset": is_whole(self.opset, 1, 1000),
            "input_shape": len(self.input_shape) == 3
            and self.input_shape[0] == 3
            and all(is_whole(side, 1) for side in self.input_shape),
            "precision": self.precision in PRECISIONS,
            "has_features": isinstance(self.has_features, bool),
        }
        if wrong := [name for name, is_right in checks.items() if not is_right]:
            values = ", ".join(f"{name} {shown(getattr(self, name))}" for name in wrong)
            raise PertinenceError(f"an exported file is described wrongly: {values}")
        for measured in (self.agreement, self.host_pixels):
            if measured is not None and not all(map(is_number, asdict(measured).values())):
                raise PertinenceError(
                    f"the agreement of the exported file {self.file} is no set of numbers: {shown(measured)}"
                )

    @classmethod
    def from_dict(cls, values: Any) -> Export:
        """Read what `to_dict` wrote; raises `PertinenceError` if it is malformed."""
        try:
            known = {key: value for key, value in values.items() if key in cls.__dataclass_fields__}
            unknown = {key: value for key, value in values.items() if key not in known}
            known["input_shape"] = tuple(known["input_shape"])
            for key, kind in (("agreement", Agreement), ("host_pixels", HostPixels)):
                if known.get(key) is not None:
                    known[key] = kind(**known[key])
            return cls(**known, unknown=unknown)
        except MALFORMED as error:
            if isinstance(error, PertinenceError):
                raise
            raise PertinenceError(f"an exported file is described wrongly ({explain(error)})") from error

    @property
    def outputs(self) -> list[str]:
        """Names of its outputs."""
        return [LOGITS, FEATURES] if self.has_features else [LOGITS]

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        unknown = values.pop("unknown")
        return {**values, "input_shape": list(self.input_shape), **unknown}

    def read(self, path: Path) -> bytes:
        """The content of its file, if it is what the config describes and refers to no other file.

        Raises:
            PertinenceError: it is missing or another file, or its weights are in a file of their own.
        """
        if not path.is_file():
            raise PertinenceError(f"the exported file {self.file} is missing: export the model again, or fetch it")
        if path.stat().st_size >= MAX_BYTES:
            raise PertinenceError(f"the exported file {self.file} has {path.stat().st_size:,} bytes, 2 GiB or more")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise PertinenceError(
                f"the exported file {self.file} does not have the hash in config.json, so it is damaged or another "
                "file: export the model again, or fetch it anew"
            )
        check_self_contained(content, self.file)
        return content


def check_self_contained(content: bytes, name: str) -> None:
    """Refuse a graph that may read other files: whoever made it chooses which.

    A tensor outside of the file has an entry with the key "location".

    Raises:
        PertinenceError: there is such a key, or the file is not one of ONNX.
    """
    if content[4:8] == b"ORTM":
        raise PertinenceError(f"{name} is a file in the format of ONNX Runtime, expected ONNX")
    if OUTSIDE.search(content):
        raise PertinenceError(
            f"{name} has weights in another file, which could be any file of this machine: save it as one file "
            "(external_data=False)"
        )
