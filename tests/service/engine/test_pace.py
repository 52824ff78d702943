"""The wait in a long queue is predicted from how fast its images have been answered."""

from __future__ import annotations

import pytest

from service.engine.admission import RELIABLE_IMAGES, Pace


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
    answered(pace, clock, 10, every_s=0.01, waiting=100)
    assert 1.0 == pytest.approx(pace.wait_s(100))
    answered(pace, clock, 500, every_s=0.002, waiting=100)
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
    """Fewer admitted images than RELIABLE_IMAGES change and predict nothing, even after a long pause."""
    pace = Pace(clock := Clock())
    answered(pace, clock, 50, every_s=10.0, waiting=1)
    assert 0 == pace.wait_s(200)
    answered(pace, clock, 50, every_s=0.01, waiting=RELIABLE_IMAGES)
    answered(pace, clock, 50, every_s=10.0, waiting=RELIABLE_IMAGES - 1)
    assert 0.01 * 200 == pytest.approx(pace.wait_s(200))
    assert 0 == pace.wait_s(RELIABLE_IMAGES - 1)


def test_one_long_pause_is_soon_forgotten() -> None:
    """One gap, such as the replacement of a device process, changes the estimate by less than a third."""
    pace = Pace(clock := Clock())
    answered(pace, clock, 100, every_s=0.01, waiting=100)
    answered(pace, clock, 1, every_s=60, waiting=100)

    assert 1.3 > pace.wait_s(100)
