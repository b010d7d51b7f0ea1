"""Settings: how experts are run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..experts.reference import LoadOptions
from ..utils.errors import PertinenceError
from ..utils.validation import check_least


@dataclass
class RuntimeArguments:
    """How experts are run."""

    batch_size: int = field(default=64, metadata={"help": "Images that an expert receives at once."})
    num_workers: int = field(default=0, metadata={"help": "Processes that decode images; 0: this one."})
    on_bad_image: str = field(
        default="stop",
        metadata={
            "help": "stop: an image that cannot be decoded ends the run; skip: it is left out, counted and named.",
            "choices": ["stop", "skip"],
        },
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; default: an accelerator if there is one."}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "float32, bfloat16 or float16; default: as each checkpoint says."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where predictions are kept; default: $HF_HOME/pertinence."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that experts bring with them. Read it first."}
    )
    token: str | None = field(default=None, metadata={"help": "Hub token; default: that of `hf auth login`."})

    def __post_init__(self):
        check_least(self, batch_size=1, num_workers=0)
        if self.on_bad_image not in ("stop", "skip"):
            raise PertinenceError(f"on_bad_image={self.on_bad_image!r} is not one of stop, skip")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise PertinenceError(f"dtype {self.dtype!r} is not one of float32, bfloat16, float16")

    @property
    def load_options(self) -> LoadOptions:
        return LoadOptions(dtype=self.dtype, token=self.token, trust_remote_code=self.trust_remote_code)
