"""Batches: what waits is answered together, by one thread, at the point that the controller chooses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ..routing.front import OperatingPoint
from ..utils.errors import PertinenceError, first_line
from .controller import LoadController
from .engine import Answer, Engine
from .metrics import Metrics
from .points import ServedPoints
from .refusals import Refusal


logger = logging.getLogger(__name__)

LOOK = 0.25
"""Seconds between two looks of the controller while nothing arrives."""


@dataclass
class _Waiting:
    """An image that waits for its answer, at a point of its own or at that of the server (None)."""

    image: torch.Tensor
    point: OperatingPoint | None
    answer: asyncio.Future[Answer]


class Batcher:
    """Answers images of many requests in batches.

    A batch starts as soon as the experts are free, with all that waits for one point: under load batches fill by
    themselves, and without load nothing waits for others.

    Args:
        engine: what answers.
        points: the points that are used.
        controller: chooses among them; None: the first one is used.
        metrics: what is counted.
        max_batch: largest number of images of a batch.
        max_queue: largest number of images that wait.
    """

    def __init__(
        self,
        engine: Engine,
        points: ServedPoints,
        controller: LoadController | None,
        metrics: Metrics,
        max_batch: int,
        max_queue: int,
    ):
        self.engine, self.points, self.controller, self.metrics = engine, points, controller, metrics
        self.max_batch, self.max_queue = max_batch, max_queue
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "experts")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def current(self) -> OperatingPoint:
        """The point that answers requests which ask for none."""
        return self.points.allowed[self.controller.position if self.controller else 0]

    @property
    def waiting(self) -> int:
        """Number of images that wait."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to answer; called within the event loop."""
        self._tasks = [asyncio.create_task(self._run())]
        if self.controller is not None:
            self._tasks.append(asyncio.create_task(self._come_back(self.controller)))

    async def stop(self) -> None:
        """Answer what waits, then end."""
        while self._queue:
            await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown()

    async def classify(self, image: torch.Tensor, point: OperatingPoint | None, since: float) -> Answer:
        """The answer to one image.

        Args:
            image: uint8 (3, H, W).
            point: the point that the request asks for; None: that of the server.
            since: when the request was there, as `time.monotonic` has it.

        Raises:
            Refusal: too many images wait, or none of the allowed points is fast enough.
            PertinenceError: an expert cannot take the image.
        """
        self.admit()
        waiting = _Waiting(image, point, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._arrived.set()
        answer = await waiting.answer
        now = time.monotonic()
        if self.controller is not None:
            self.controller.answered(now, now - since)
        return answer

    def admit(self) -> None:
        """Raise `Refusal` if an image that arrives now would wait too long."""
        waiting, now = len(self._queue), time.monotonic()
        if self.controller is not None:
            self.controller.decide(now, waiting)
            if not self.controller.admits(now, waiting):
                seconds = self.controller.retry_after(now, waiting)
                raise _overload(f"{waiting} images wait, more than can be answered in time", seconds)
        if waiting >= self.max_queue:
            raise _overload(f"{waiting} images wait already", 1.0)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            batch, point = self._next()
            if batch:
                await self._answer(batch, point)
            elif not self._queue:
                self._arrived.clear()

    async def _come_back(self, controller: LoadController) -> None:
        """Let the controller see that nothing arrives."""
        while True:
            await asyncio.sleep(LOOK)
            controller.decide(time.monotonic(), len(self._queue))

    def _next(self) -> tuple[list[_Waiting], OperatingPoint]:
        """What is answered next: the longest waiting image, and others at the same point."""
        limit = self.max_batch
        if self.controller is not None:
            self.controller.decide(time.monotonic(), max(0, len(self._queue) - 1))
            limit = min(limit, self.controller.batch_limit())
        chosen, left, point = list[_Waiting](), deque[_Waiting](), self.current
        while self._queue and len(chosen) < limit:
            one = self._queue.popleft()
            if one.answer.done():  # nobody waits for it any more
                continue
            wanted = one.point or self.current
            if not chosen:
                point = wanted
            (chosen if wanted.name == point.name else left).append(one)
        self._queue.extendleft(reversed(left))
        return chosen, point

    async def _answer(self, batch: Sequence[_Waiting], point: OperatingPoint) -> None:
        start, cost = time.monotonic(), self.points.cost(point)
        if self.controller is not None:
            self.controller.started(start, len(batch), cost)
        images = [one.image for one in batch]
        answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answers, images, point)
        now = time.monotonic()
        if self.controller is not None:
            self.controller.finished(now, len(batch), cost, now - start)
        self.metrics.batch_images.observe(len(batch))
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, Answer):
                one.answer.set_result(answer)
            else:
                one.answer.set_exception(answer)

    def _answers(self, images: Sequence[torch.Tensor], point: OperatingPoint) -> list[Answer | Exception]:
        """The answer to each image, or why there is none: one that an expert cannot take harms no other."""
        try:
            return [*self.engine.answer(images, point)]
        except Exception as error:
            if len(images) > 1:
                return [answer for image in images for answer in self._answers([image], point)]
            if not isinstance(error, PertinenceError):
                logger.error(f"an image could not be classified ({first_line(error)})")
            return [error]


def _overload(sentence: str, seconds: float) -> Refusal:
    after = {"Retry-After": str(max(1, round(seconds)))}
    return Refusal(503, "overload", f"{sentence}: try again in a second", after)
