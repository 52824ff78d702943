"""The wait in a long queue is predicted from how fast its images have been answered, and compared with simulations."""

from __future__ import annotations

import heapq
import random
import statistics
from collections import deque
from collections.abc import Iterable

import pytest

from service.engine.admission import FIRST_IMAGES, OLD_S, RECENT_IMAGES, RELIABLE_IMAGES, Pace

CHEAP_S, PNG_9_MP_S, PNG_64_MP_S = 0.005, 0.26, 2.57  # decoding, on one core


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        """The current time."""
        return self.now


def answered(pace: Pace, clock: Clock, times: int, *, every_s: float, waiting: int) -> None:
    """Record that this many images were answered, one after the other."""
    for _ in range(times):
        clock.now += every_s
        pace.answered(1, waiting)


def test_a_long_queue_takes_its_length_times_the_pace() -> None:
    """The estimate is the number of waiting images times the measured pace, and follows changes of the pace."""
    pace = Pace(clock := Clock())
    answered(pace, clock, 20, every_s=0.01, waiting=100)
    assert 1.0 == pytest.approx(pace.wait_s(100))
    answered(pace, clock, 1500, every_s=0.002, waiting=100)
    assert 0.2 == pytest.approx(pace.wait_s(100), rel=0.01)


def test_batches_have_the_pace_of_their_images() -> None:
    """A batch of eight counts as eight images, whether from one request or from eight."""
    together, apart = Pace(clock := Clock()), Pace(clock)
    for _ in range(300):
        clock.now += 0.08
        together.answered(8, 64)
        for _ in range(8):
            apart.answered(1, 64)

    assert 0.64 == pytest.approx(together.wait_s(64), rel=0.01)
    assert 0.64 == pytest.approx(apart.wait_s(64), rel=0.2)


def test_fewer_images_than_are_reliable_change_and_predict_nothing() -> None:
    """Fewer admitted images than RELIABLE_IMAGES change and predict nothing."""
    pace = Pace(clock := Clock())
    answered(pace, clock, 50, every_s=0.1, waiting=1)
    assert 0 == pace.wait_s(200)
    answered(pace, clock, 50, every_s=0.01, waiting=RELIABLE_IMAGES)
    answered(pace, clock, 50, every_s=0.5, waiting=RELIABLE_IMAGES - 1)
    assert 0.01 * 200 == pytest.approx(pace.wait_s(200))
    assert 0 == pace.wait_s(RELIABLE_IMAGES - 1)


def test_the_first_images_predict_nothing() -> None:
    """A single image may be far from the mean, so nothing is predicted from the first few."""
    pace = Pace(clock := Clock())
    answered(pace, clock, FIRST_IMAGES, every_s=PNG_64_MP_S, waiting=23)
    assert 0 == pace.wait_s(23)
    answered(pace, clock, 1, every_s=PNG_64_MP_S, waiting=23)
    assert 23 * PNG_64_MP_S == pytest.approx(pace.wait_s(23))


def test_an_old_flood_is_forgotten() -> None:
    """After a pause nothing is predicted from what was measured before it, neither in the pause nor after it."""
    pace = Pace(clock := Clock())
    answered(pace, clock, 50, every_s=PNG_64_MP_S, waiting=23)
    assert pace.wait_s(23) > 30
    clock.now += OLD_S + 1
    assert 0 == pace.wait_s(23)
    answered(pace, clock, FIRST_IMAGES + 1, every_s=0.01, waiting=23)

    assert 0.23 == pytest.approx(pace.wait_s(23))


def test_one_long_pause_is_soon_forgotten() -> None:
    """One gap, such as the replacement of a device process, changes the estimate by less than a third."""
    pace = Pace(clock := Clock())
    answered(pace, clock, 100, every_s=0.01, waiting=100)
    answered(pace, clock, 1, every_s=0.9 * OLD_S, waiting=100)

    assert 1.0 < pace.wait_s(100) < 1.3


def simulated(costs: Iterable[float], *, threads: int, admitted: int) -> list[tuple[float, float]]:
    """Decode images in order with this many threads; whenever one is answered, the next one is admitted.

    Returns the predicted and the true wait of each image that found a full queue.
    """
    pace, source = Pace(clock := Clock()), iter(costs)
    waiting: deque[tuple[float, float, float]] = deque()  # cost, time of arrival, predicted wait
    busy: list[tuple[float, int, tuple[float, float, float]]] = []  # a heap, by the end of decoding
    found = []
    for count, cost in enumerate(source):
        waiting.append((cost, clock.now, pace.wait_s(len(waiting) + len(busy))))
        if len(waiting) + len(busy) < admitted:
            continue
        while waiting and len(busy) < threads:
            heapq.heappush(busy, (clock.now + waiting[0][0], count + len(busy), waiting.popleft()))
        clock.now, _, (done, since, predicted) = heapq.heappop(busy)
        pace.decoded(done)
        pace.answered(1, len(waiting) + len(busy) + 1)
        if since > 100.0:
            found.append((predicted, clock.now - since))
    return found


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    "costs",
    [
        [CHEAP_S] * 1000,
        [PNG_9_MP_S] * 500,
        [PNG_9_MP_S, CHEAP_S] * 500,
        random.Random(1).choices([PNG_9_MP_S, 0.5, 1.0, PNG_64_MP_S], k=1000),
        random.Random(2).choices([CHEAP_S, PNG_64_MP_S], [9, 1], k=3000),
    ],
    ids=["cheap", "expensive", "alternating", "9 to 64 megapixels", "one in ten expensive"],
)
def test_the_prediction_is_near_the_truth(costs: list[float], threads: int) -> None:
    """On average the predicted wait is within a third of the true one, and never far above the longest true one."""
    found = simulated(costs, threads=threads, admitted=32)[2 * RECENT_IMAGES :]
    predicted, true = zip(*found, strict=True)

    assert statistics.mean(true) == pytest.approx(statistics.mean(predicted), rel=1 / 3)
    assert max(predicted) < 1.5 * max(true)


@pytest.mark.parametrize("before", [1, 4, 20, 200])
@pytest.mark.parametrize("after_s", [CHEAP_S, PNG_9_MP_S])
def test_the_end_of_a_flood_is_noticed(before: int, after_s: float) -> None:
    """As soon as RECENT_IMAGES cheaper images were answered after a flood, the prediction is that for cheaper ones."""
    costs = [PNG_64_MP_S] * before + [after_s] * 600
    found = simulated(costs, threads=1, admitted=24)
    settled = found[before + RECENT_IMAGES + 24 :] if after_s * RECENT_IMAGES > 2 else found[before + 450 :]

    assert len(settled) > 50
    for predicted, true in settled:
        assert predicted == pytest.approx(true, rel=0.2)
