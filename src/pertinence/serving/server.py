"""Running the server: loads the model, listens, and ends when what it has accepted is answered."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from contextlib import closing
from pathlib import Path
from types import FrameType

import torch
import uvicorn
from transformers.utils import logging

from ..evaluation.evaluate import ModelSource, config_of, open_model
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..utils.distributed import device_of, make_accelerator
from ..utils.errors import PertinenceError
from .app import Service, make_app, make_service
from .arguments import ServeArguments, ServedPointArguments
from .engine import ModelEngine
from .keys import Keys
from .points import ServedPoints
from .protocol import LimitedProtocol


logger = logging.get_logger(__name__)

BACKLOG = 2048
NOISY = ("uvicorn.error", "python_multipart")
"""Loggers that write a line for every malformed request, so that clients could fill a disk."""
GRACE = 0.25
"""Seconds in which what was sent before the end arrives."""
WARM_UP = 64
"""Pixels of each side of the image that experts see first."""


def serve(
    model: ModelSource,
    args: ServeArguments | None = None,
    points: ServedPointArguments | None = None,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
) -> None:
    """Serve a model over HTTP until the process is told to end (SIGTERM, SIGINT).

    Args:
        model: folder or Hub id, or a loaded model, which is used where it is.
        args: where to listen, and the limits.
        points: which operating point answers, and how far the server may move from it under load.
        expert_paths: new folders of local experts that have moved, by expert name.
        revision: branch, tag or commit on the Hub.

    Raises:
        PertinenceError: there is no model, no point meets the budget, or the port is taken.
    """
    args, points = args or ServeArguments(), points or ServedPointArguments()
    Keys(args.api_key_file)  # what is wrong is said before experts are loaded, which takes longer
    with closing(_listen(args)) as listener:
        used = ServedPoints.of(config_of(model, args.token, revision), points)
        loaded = load(model, args, expert_paths, revision)
        name = loaded.name_or_path or "model"
        shown_name = Path(name).resolve().name if Path(name).is_dir() else name  # a path would tell of this machine
        service = make_service(shown_name, ModelEngine(loaded, used.max_error_rate), args, points)
        address, port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        _warn_if_open(address, service)
        print(f"Serving {service.name} at http://{shown}:{port} (interface: /docs)", flush=True)
        _run(service, listener, args)


def load(
    model: ModelSource,
    args: ServeArguments,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
) -> PertinenceForImageClassification:
    """Load a model for serving, on its device; its experts have run once, unless they are loaded when needed."""
    options = {} if args.max_memory is None else {"lazy": True, "max_memory": args.max_memory}
    loaded = open_model(model, args, expert_paths, revision, **options)
    if loaded is not model:
        loaded.to(device_of(make_accelerator(args.device)))  # type: ignore[arg-type]  # transformers types it so
    if args.max_memory is None:
        image = torch.randint(0, 256, (3, WARM_UP, WARM_UP), dtype=torch.uint8)
        for expert in filter(None, [*loaded.pool, loaded.stem]):
            try:
                expert.run([image])
            except PertinenceError as error:
                logger.warning(f"{expert.entry.name} does not take an image of {WARM_UP} x {WARM_UP} pixels: {error}")
    return loaded


def _listen(args: ServeArguments) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(args.host, args.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise PertinenceError(
            f"nothing can listen at {args.host}:{args.port} ({error.strerror or error}): choose another --port or "
            "--host"
        ) from error
    return listener


def _warn_if_open(address: str, service: Service) -> None:
    if not (ipaddress.ip_address(address.partition("%")[0]).is_loopback or service.keys.are_needed):
        logger.warning("Everybody who reaches this port may use the server: --api-key-file demands a key.")


class _Server(uvicorn.Server):
    """A server that says at once, when it is told to end, that it is not ready for more."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain."""
        self.service.is_draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Read what is on its way, then end; uvicorn would close connections whose request is not yet read."""
        await asyncio.sleep(GRACE)
        for server in self.servers:
            server.close()
        await asyncio.sleep(GRACE)
        await super().shutdown(sockets)


def _run(service: Service, listener: socket.socket, args: ServeArguments) -> None:
    class Protocol(LimitedProtocol):
        header_seconds = args.request_seconds

    config = uvicorn.Config(
        make_app(service),
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=args.drain_seconds,
    )
    for name in NOISY:
        logging.get_logger(name).setLevel(logging.ERROR)
    # uvicorn raises the signal once more when all is answered; that is a success.
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _Server(config, service).run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
