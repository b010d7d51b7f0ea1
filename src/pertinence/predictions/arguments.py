"""Settings of how experts run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..utils.settings import Settings, setting


if TYPE_CHECKING:
    from ..experts.reference import LoadOptions


@dataclass
class LoadingArguments(Settings):
    """How experts are loaded."""

    device: str | None = setting(
        None, "cpu, cuda, ...; default: an accelerator if there is one.", group="hardware", decides=False
    )
    dtype: str | None = setting(
        None,
        "Precision of the experts; default: that of each checkpoint.",
        group="hardware",
        choices=["float32", "bfloat16", "float16"],
    )
    backend: str | None = setting(
        None,
        "torch, onnx or openvino; default: what each expert was saved with.",
        group="hardware",
        decides=False,  # the entries of the experts record it
    )
    provider: str | None = setting(
        None, "Execution provider of ONNX Runtime; default: that of the CPU.", group="hardware", decides=False
    )
    fold_batch_norms: bool = setting(
        False,
        "Fold batch norms into the layers before them (of torch): faster.",
        group="hardware",
        decides=False,  # it changes the last bits
    )
    trust_remote_code: bool = setting(
        False, "Run code that comes with experts. Read it first.", group="experts", decides=False
    )
    token: str | None = setting(None, "Hub token; default: that of `hf auth login`.", group="experts", decides=False)

    @property
    def load_options(self) -> LoadOptions:
        """How experts are loaded."""
        # It imports torch and transformers, which the help of a command must not.
        from ..experts.reference import LoadOptions

        names = ("dtype", "token", "trust_remote_code", "backend", "provider", "fold_batch_norms")
        return LoadOptions.parse({name: getattr(self, name) for name in names})


@dataclass
class BatchArguments(Settings):
    """How images reach experts."""

    batch_size: int = setting(64, "Images per call of an expert.", group="hardware", least=1, decides=False)
    num_workers: int = setting(
        0, "Processes that decode images; 0: the main one.", group="hardware", least=0, decides=False
    )


@dataclass
class ExpertArguments(LoadingArguments, BatchArguments):
    """How experts are loaded and run."""


@dataclass
class RuntimeArguments(ExpertArguments):
    """How experts run over a split."""

    on_bad_image: str = setting(
        "stop",
        "If an image cannot be decoded: stop with an error, or skip it and report it.",
        group="data",
        choices=["stop", "skip"],
        decides=False,
    )
    cache_dir: str | None = setting(
        None, "Folder for predictions; default: $HF_HOME/pertinence.", group="output", decides=False
    )

    @property
    def predict_options(self) -> dict[str, Any]:
        """How experts are run over images, as `predict` takes it."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "cache_dir": self.cache_dir,
            "on_bad_image": self.on_bad_image,
        }
