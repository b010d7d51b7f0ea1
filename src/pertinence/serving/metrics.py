"""What the server counts, for Prometheus and for its page."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Answer


LATENCY_BUCKETS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server.

    Args:
        points: names of the points that the server may use by itself.
        experts: names of the experts.
        current: gives the name of the point that is used now.
        waiting: gives the number of images that wait.
    """

    def __init__(
        self, points: Sequence[str], experts: Sequence[str], current: Callable[[], str], waiting: Callable[[], int]
    ):
        self.registry = registry = CollectorRegistry()
        self.started = time.time()
        self._current, self._experts = current, tuple(experts)
        self.requests = Counter(
            "pertinence_requests", "Requests to classify an image, by status of HTTP.", ["status"], registry=registry
        )
        self.refused = Counter(
            "pertinence_refused", "Requests that were refused, by reason.", ["reason"], registry=registry
        )
        self.seconds = Histogram(
            "pertinence_request_seconds",
            "Seconds from the last byte of a request to its answer.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.batch_images = Histogram(
            "pertinence_batch_images", "Images of a batch.", buckets=BATCH_BUCKETS, registry=registry
        )
        self.answers = Counter("pertinence_answers", "Images that an expert answered.", ["expert"], registry=registry)
        self.runs = Counter("pertinence_expert_runs", "Images that an expert ran on.", ["expert"], registry=registry)
        self.by_point = Counter(
            "pertinence_point_answers",
            "Images that were answered at an operating point.",
            ["operating_point"],
            registry=registry,
        )
        self.abstained = Counter("pertinence_abstained", "Images that were given no answer.", registry=registry)
        self.gmacs = Counter("pertinence_gmacs", "GMACs spent on images.", registry=registry)
        self.active = Gauge("pertinence_requests_active", "Requests being answered.", registry=registry)
        self.queue = Gauge("pertinence_queue_images", "Images that wait.", registry=registry)
        self.queue.set_function(waiting)
        self.point = Gauge(
            "pertinence_operating_point",
            "1 for the operating point that is used now, 0 for the others that may be used.",
            ["operating_point"],
            registry=registry,
        )
        for name in points:
            self.point.labels(name).set_function(partial(self._is_current, name))
        for name in experts:
            self.answers.labels(name)
            self.runs.labels(name)

    def answered(self, answer: Answer) -> None:
        """Count an answer."""
        self.answers.labels(answer.expert).inc()
        for name in answer.experts_run:
            self.runs.labels(name).inc()
        self.by_point.labels(answer.operating_point).inc()
        self.abstained.inc(answer.abstained)
        self.gmacs.inc(answer.gmacs)

    def text(self) -> bytes:
        """All of it, in the text format of Prometheus."""
        return generate_latest(self.registry)

    def live(self) -> dict[str, Any]:
        """What the page shows: answers, shares of the experts, mean cost."""
        counts = {name: self._value("pertinence_answers_total", expert=name) for name in self._experts}
        answered = sum(counts.values())
        return {
            "answered": int(answered),
            "expert_shares": {name: count / answered if answered else 0.0 for name, count in counts.items()},
            "gmacs": self._value("pertinence_gmacs_total") / answered if answered else None,
            "waiting": int(self._value("pertinence_queue_images")),
            "seconds_up": time.time() - self.started,
        }

    def _is_current(self, name: str) -> float:
        return float(name == self._current())

    def _value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0
