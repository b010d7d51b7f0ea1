"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..predictions.arguments import LoadingArguments
from ..routing.budgets import MEASURED_BY, Budget, check_limit, check_loss, limit
from ..utils.errors import PertinenceError
from ..utils.settings import setting


FLOOR = 0.01
"""How much accuracy may be lost under load against the reference expert, if nothing is said of it."""
MIB = 2**20


def check_target(name: str, target: Any) -> None:
    """Raise `PertinenceError` unless a target is a positive number."""
    check_limit(name, target)
    if target == 0:
        raise PertinenceError(f"{name} must be a positive number, got 0")


@dataclass(kw_only=True)
class ServedPointArguments(Budget):
    """The operating point that answers, and how far the server may move from it under load."""

    max_accuracy_loss: float | None = limit(
        check_loss,
        "Cheapest point that loses at most this accuracy (0 to 0.2) against the reference expert; with "
        f"--target-latency-ms it is the last one to which the server moves under load, and {FLOOR} if not given.",
    )
    target_latency_ms: float | None = limit(
        check_target,
        "Milliseconds within which 95 % of the requests are answered, by cheaper points if need be; default: the "
        "point is fixed.",
    )

    @property
    def given(self) -> dict[str, Any]:
        """The budget of the point that answers without load, as the argument of `set_budget`."""
        others = {"target_latency_ms"} | ({"max_accuracy_loss"} if self.target_latency_ms is not None else set())
        return {name: value for name, value in super().given.items() if name not in others}

    @property
    def without_load(self) -> Budget:
        """The budget of the point that answers without load; none: the model's own point."""
        measured = {name: getattr(self, name) for name in MEASURED_BY}
        return Budget(**self.given, **measured)


@dataclass
class ServeArguments(LoadingArguments):
    """How a model is served, and what a request may ask of the server."""

    host: str = setting("127.0.0.1", "Address to listen at; 0.0.0.0: every one of this machine.", group="server")
    port: int = setting(8000, "Port; 0: any that is free.", group="server", least=0, most=65535)
    api_key_file: str | None = setting(
        None, "File of keys, one a line, of which a request needs one; default: none is needed.", group="server"
    )
    drain_seconds: int = setting(
        60, "Seconds that accepted requests have left when the server is ended.", group="server", least=0
    )
    max_requests: int = setting(256, "Requests at a time; others get a 429.", group="limits", least=1)
    max_queue: int = setting(128, "Images that wait for an expert; others get a 503.", group="limits", least=1)
    max_body_mib: int = setting(16, "MiB of a request; larger ones get a 413.", group="limits", least=1, most=1024)
    max_megapixels: float = setting(
        50.0, "Millions of pixels of an image; larger ones get a 413.", group="limits", above=0, below=1000
    )
    formats: list[str] = setting(
        ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"],
        "Formats of images, as Pillow names them; others get a 415.",
        group="limits",
    )
    request_seconds: float = setting(
        30.0, "Seconds in which a request must have arrived, else it gets a 408.", group="limits", above=0
    )
    batch_size: int = setting(32, "Most images that experts get at once.", group="hardware", least=1)
    max_memory: str | None = setting(
        None, "Load experts when they are needed, within this limit, like 2GiB.", group="hardware"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        from PIL import Image

        Image.init()
        self.formats = [name.upper() for name in self.formats]
        unknown = sorted(set(self.formats) - set(Image.OPEN))
        if unknown or not self.formats:
            raise PertinenceError(
                f"formats={' '.join(unknown) or 'none'}: Pillow reads {', '.join(sorted(set(Image.OPEN) - {'EPS'}))}"
            )

    @property
    def max_bytes(self) -> int:
        """Bytes of a request."""
        return self.max_body_mib * MIB

    @property
    def max_pixels(self) -> int:
        """Pixels of an image."""
        return int(self.max_megapixels * 1e6)
