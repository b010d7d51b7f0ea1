"""The load controller on a simulated clock: arrivals, a queue and one thread of experts, without waiting."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pertinence.serving.controller import LoadController, ladder


COSTS = [1.0, 0.9, 0.8, 0.7, 0.62]
TARGET = 0.1
SECONDS = 0.002
"""An image takes so long at the first step in a full batch; and each batch so much more."""
CAPACITY = 1 / SECONDS


@dataclass
class Log:
    """What happened: time and latency of each answer, times of refusals, times and positions of changes."""

    answers: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    steps: list[tuple[float, int]] = field(default_factory=list)

    def p95(self, start: float = 0.0, end: float = 1e9) -> float:
        latencies = sorted(latency for when, latency in self.answers if start <= when < end)
        return latencies[int(0.95 * (len(latencies) - 1))]

    def position(self, when: float) -> int:
        return next((position for time, position in reversed(self.steps) if time <= when), 0)

    def changes(self, start: float, end: float) -> int:
        return sum(start <= when < end for when, _ in self.steps)


def simulate(
    rate: Callable[[float], float], seconds: float, costs: list[float] = COSTS, seed: int = 0, slowness: float = 1.0
) -> Log:
    """Poisson arrivals at `rate(now)` a second, answered in batches as the server does."""
    controller, rng, log = LoadController(costs, TARGET, 32), random.Random(seed), Log()
    queue: deque[float] = deque()
    now, next_arrival, done, batch = 0.0, 0.0, float("inf"), ([], 0.0, 0)

    def decide(waiting: int) -> None:
        before = controller.position
        if controller.decide(now, waiting) != before:
            log.steps.append((now, controller.position))

    while now < seconds:
        now = min(next_arrival, done)
        if now == done:
            arrivals, start, position = batch
            controller.finished(now, len(arrivals), costs[position], now - start)
            for arrived in arrivals:
                controller.answered(now, now - arrived)
                log.answers.append((now, now - arrived))
            done = float("inf")
        else:
            next_arrival = now + rng.expovariate(rate(now))
            decide(len(queue))
            if controller.admits(now, len(queue)):
                queue.append(now)
            else:
                log.refused.append(now)
        if queue and done == float("inf"):
            decide(len(queue) - 1)
            count = min(len(queue), controller.batch_limit())
            batch = ([queue.popleft() for _ in range(count)], now, controller.position)
            controller.started(now, count, costs[controller.position])
            done = now + slowness * (0.002 + 0.95 * count * costs[controller.position] * SECONDS)
    return log


def test_points_of_about_the_same_cost_are_one_step_of_the_ladder():
    assert ladder([1.0, 0.99, 0.97, 0.95, 0.94, 0.80, 0.795]) == [0, 3, 5, 6]
    assert ladder([1.0]) == [0]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.7])
def test_a_light_load_is_answered_at_the_first_point(share):
    log = simulate(lambda now: share * CAPACITY, 60)
    assert log.refused == []
    assert log.p95() < TARGET
    assert sum(log.position(second) == 0 for second in range(60)) > 55


@pytest.mark.parametrize("seed", range(3))
def test_more_load_than_the_first_point_bears_is_answered_at_cheaper_points_in_time(seed):
    """1.25 times what the first point bears at most, which the cheapest bears with 77 % of its time."""
    log = simulate(lambda now: 1.25 * CAPACITY, 60, seed=seed)
    assert log.refused == []
    assert log.p95() < TARGET
    assert log.p95(0, 2) < TARGET, "also at once"
    assert max(position for _, position in log.steps) == len(COSTS) - 1


def test_it_comes_back_when_the_load_falls_and_does_not_flutter():
    """A minute of rest, a minute of load, a minute of rest."""
    log = simulate(lambda now: (1.3 if 60 <= now < 120 else 0.3) * CAPACITY, 180)
    assert log.refused == []
    assert log.position(59) == 0
    assert min(log.position(second) for second in range(62, 120)) >= 1
    assert log.position(150) == 0
    assert log.changes(125, 180) <= 2 * len(COSTS)
    assert log.p95(60, 120) < TARGET
    assert log.changes(60, 120) < 60, "steps back in vain become rarer"


def test_only_past_the_cheapest_point_requests_are_refused_and_the_others_are_in_time():
    log = simulate(lambda now: 2.4 * CAPACITY, 30)
    total = len(log.answers) + len(log.refused)
    assert log.position(29) == len(COSTS) - 1
    assert log.p95(1) < TARGET
    # What the cheapest point can bear is borne.
    assert len(log.answers) / 30 > 0.85 * CAPACITY / COSTS[-1]
    assert 0.2 < len(log.refused) / total < 0.5


def test_with_one_point_it_only_refuses():
    log = simulate(lambda now: 1.3 * CAPACITY, 30, costs=[1.0])
    assert log.steps == []
    assert log.refused
    assert log.p95(1) < TARGET
    assert len(log.answers) / 30 > 0.85 * CAPACITY


def test_what_no_point_can_do_in_time_does_not_refuse_everything():
    """Each batch takes longer than the target: some requests are still answered, as late as they are."""
    log = simulate(lambda now: 5.0, 30, slowness=60.0)
    assert len(log.answers) > 30


def test_a_burst_after_silence_is_met_at_once():
    log = simulate(lambda now: (1.4 if now % 20 > 15 else 0.1) * CAPACITY, 100)
    assert log.p95() < TARGET
    assert len(log.refused) < 0.01 * len(log.answers)


def test_an_idle_server_is_at_its_first_point_though_images_were_large():
    """Each image takes longer than is expected of a request; the time does not depend on the point."""
    controller, now = LoadController([5.0, 2.0, 1.0], TARGET, 32), 0.0
    for _ in range(20):
        controller.decide(now, 10)
        controller.started(now, 4, controller.costs[controller.position])
        now += 0.2
        controller.finished(now, 4, controller.costs[controller.position], 0.2)
    assert controller.position == 2
    looks = [controller.decide(now + look / 4, 0) for look in range(4 * 60)]
    assert looks == sorted(looks, reverse=True)
    assert looks[-1] == 0
