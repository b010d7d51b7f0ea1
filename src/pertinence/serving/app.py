"""The application: the routes of the server, and what each answers."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from .._version import __version__
from ..routing.front import OperatingPoint
from ..utils.errors import PertinenceError, first_line
from .arguments import MIB, ServeArguments, ServedPointArguments
from .batcher import Batcher
from .controller import LoadController
from .engine import Answer, Engine
from .keys import Keys
from .metrics import Metrics
from .openapi import describe_api
from .parameters import Parameters
from .pictures import decode_picture, is_small, open_picture
from .points import ServedPoints
from .refusals import Refusal
from .uploads import read_upload


logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of pages: nothing is loaded from elsewhere, and no other page may show them."""
Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """Everything that one server holds.

    Args:
        name: what the model is called in `/info`.
        engine: what answers.
        points: the operating points that are used.
        args: limits.
        target: seconds within which 95 % of the requests are to be answered; None: the point is fixed.
    """

    def __init__(self, name: str, engine: Engine, points: ServedPoints, args: ServeArguments, target: float | None):
        self.name, self.engine, self.points, self.args, self.target = name, engine, points, args, target
        self.keys = Keys(args.api_key_file)
        self.is_draining = False
        self.labels = [label for _, label in sorted((engine.config.id2label or {}).items())]
        controller = None if target is None else LoadController(points.costs, target, args.batch_size)
        self.metrics = Metrics(
            [point.name for point in points.allowed],
            engine.config.expert_names,
            lambda: self.batcher.current.name,
            lambda: self.batcher.waiting,
        )
        self.batcher = Batcher(engine, points, controller, self.metrics, args.batch_size, args.max_queue)
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, "decoder")
        self._inside = 0

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """Answer while the application runs; then answer what was accepted, and end."""
        self.batcher.start()
        yield
        await self.batcher.stop()
        self._decoders.shutdown()

    async def classify(self, request: Request) -> Response:
        """The answer to an image."""
        self.keys.check(request.headers.get("authorization"))
        if self._inside >= self.args.max_requests:
            raise Refusal(
                429,
                "requests",
                f"{self._inside} requests are being answered already: try again in a second",
                {"Retry-After": "1"},
                closes=True,
            )
        self._inside += 1
        self.metrics.active.set(self._inside)
        try:
            upload = await read_upload(request, self.args)
            start = time.monotonic()
            point = self._point(upload.parameters)
            self.batcher.admit()  # before the work of decoding
            answer = await self._answer(await self._decode(upload.content), point, start)
            self.metrics.answered(answer)
            self.metrics.seconds.observe(time.monotonic() - start)
            return self._response(answer, upload.parameters)
        finally:
            self._inside -= 1
            self.metrics.active.set(self._inside)

    def _point(self, parameters: Parameters) -> OperatingPoint | None:
        try:
            return self.points.choose(parameters.budget) if parameters.budget.given else None
        except PertinenceError as error:
            raise Refusal(400, "parameters", str(error)) from error

    async def _decode(self, content: bytes) -> torch.Tensor:
        opened = open_picture(content, self.args.formats, self.args.max_pixels)
        if is_small(opened):
            return decode_picture(opened)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, decode_picture, opened)

    async def _answer(self, image: torch.Tensor, point: OperatingPoint | None, since: float) -> Answer:
        try:
            return await self.batcher.classify(image, point, since)
        except PertinenceError as error:
            raise Refusal(422, "image", str(error)) from error

    def _response(self, answer: Answer, parameters: Parameters) -> Response:
        scores = parameters.scores(answer.logits)
        best = (-scores).argsort(kind="stable")[: parameters.top_k]
        answers = [{"label": self.labels[index], "score": float(scores[index])} for index in best.tolist()]
        headers = {
            "X-Operating-Point": _as_header(answer.operating_point),
            "X-Expert": _as_header(answer.expert),
            "X-GMACs": f"{answer.gmacs:.6g}",
            "X-Abstained": str(answer.abstained).lower(),
        }
        if answer.confidence is not None:
            headers["X-Confidence"] = f"{answer.confidence:.6g}"
        if not parameters.details:
            return JSONResponse(answers, headers=headers)
        details = {
            "answers": answers,
            "operating_point": answer.operating_point,
            "expert": answer.expert,
            "experts_run": list(answer.experts_run),
            "gmacs": answer.gmacs,
            "confidence": answer.confidence,
            "abstained": answer.abstained,
            "ood_p_value": answer.ood_p_value,
            "decisions": [vars(decision) for decision in answer.decisions],
        }
        return JSONResponse(details, headers=headers)

    async def health(self, request: Request) -> Response:
        """That the process is alive."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether requests should be sent here."""
        if self.is_draining:
            raise Refusal(503, "draining", "the server is being ended: send requests to another one")
        return JSONResponse({"status": "ready"})

    async def info(self, request: Request) -> Response:
        """What is served, and how it goes."""
        self.keys.check(request.headers.get("authorization"))
        allowed = {point.name for point in self.points.allowed}
        config, args = self.engine.config, self.args
        return JSONResponse(
            {
                "model": self.name,
                "version": __version__,
                "task": "image-classification",
                "labels": self.labels,
                "experts": [{"name": entry.name, "gmacs": entry.gmacs} for entry in config.expert_entries],
                "operating_point": self.batcher.current.name,
                "operating_points": [_describe(point, point.name in allowed) for point in self.points.front],
                "max_error_rate": self.points.max_error_rate,
                "target_latency_ms": None if self.target is None else 1000 * self.target,
                "limits": {
                    "bytes": args.max_body_mib * MIB,
                    "pixels": args.max_pixels,
                    "formats": args.formats,
                    "requests": args.max_requests,
                    "queue": args.max_queue,
                },
                "needs_key": self.keys.are_needed,
                "live": self.metrics.live(),
            }
        )

    async def show_metrics(self, request: Request) -> Response:
        """What was counted, for Prometheus."""
        self.keys.check(request.headers.get("authorization"))
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def show_api(self, request: Request) -> Response:
        """The description of the interface."""
        return JSONResponse(describe_api(self.args, self.keys.are_needed))

    async def refuse(self, request: Request, error: Exception) -> Response:
        """A refusal as one sentence."""
        assert isinstance(error, Refusal)
        if request.url.path == "/" and request.method == "POST":
            self.metrics.refused.labels(error.reason).inc()
        return JSONResponse({"error": error.sentence}, error.status, error.headers)


def make_app(service: Service) -> Starlette:
    """The ASGI application of a service."""

    async def classify(request: Request) -> Response:
        try:
            response = await service.classify(request)
        except Refusal as refusal:
            response = await service.refuse(request, refusal)
        except Exception as error:
            logger.error(f"a request could not be answered ({first_line(error)})")
            response = await fail(request, error)
        service.metrics.requests.labels(response.status_code).inc()
        return response

    return Starlette(
        routes=[
            Route("/", classify, methods=["POST"]),
            Route("/", _file("index.html"), methods=["GET"]),
            Route("/docs", _file("docs.html")),
            *(Route(f"/{name}", _file(name)) for name in ("page.css", "page.js", "docs.js")),
            Route("/health", service.health),
            Route("/ready", service.ready),
            Route("/info", service.info),
            Route("/metrics", service.show_metrics),
            Route("/openapi.json", service.show_api),
        ],
        exception_handlers={Refusal: service.refuse, HTTPException: no_route, Exception: fail},
        lifespan=service.running,
    )


async def no_route(request: Request, error: Exception) -> Response:
    """An unknown path or method."""
    assert isinstance(error, HTTPException)
    sentence = {
        404: "there is nothing at this path: see /docs",
        405: f"this path does not take {request.method}: see /docs",
    }.get(error.status_code, "the request cannot be answered: see /docs")
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def fail(request: Request, error: Exception) -> Response:
    """What must not happen; the log says why."""
    return JSONResponse({"error": "the image could not be classified: the log of the server says why"}, 500)


def _file(name: str) -> Handler:
    async def answer(request: Request) -> Response:
        return FileResponse(PAGE / name, headers=SAFE)

    return answer


def _describe(point: OperatingPoint, is_allowed: bool) -> dict[str, Any]:
    select = point.select
    return {
        "name": point.name,
        "accuracy": select and select.accuracy,
        "gmacs": select and select.gmacs,
        "is_used": is_allowed,
    }


def _as_header(text: str) -> str:
    """Text as a header takes it: what is not ASCII in percent signs."""
    return quote(text, safe=" !#$&'()*+,/:;=?@[]")


def make_service(
    name: str,
    engine: Engine,
    args: ServeArguments | None = None,
    points: ServedPointArguments | None = None,
) -> Service:
    """A service of an engine; see `Service`."""
    args, points = args or ServeArguments(), points or ServedPointArguments()
    target = None if points.target_latency_ms is None else points.target_latency_ms / 1000
    return Service(name, engine, ServedPoints.of(engine.config, points), args, target)
