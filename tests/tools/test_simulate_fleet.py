"""The fleet simulation agrees with results from queueing theory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tools.simulate_fleet import Profile, Scaling, jump, simulate, steady, table

ONE_BY_ONE = Profile("one by one", np.array([0.0, 0.1]), start_s=20, queue=64, source="made up")
IN_BATCHES = Profile("in batches", np.array([0.0, 0.1, 0.1, 0.1, 0.1]), start_s=20, queue=64, source="made up")
FIXED = Scaling(16, 1, 1)


def test_a_lone_image_takes_one_pass() -> None:
    """An image that is alone takes the time of one pass."""
    outcome = simulate(ONE_BY_ONE, FIXED, steady(0.1, 3000))

    assert 0.1 == pytest.approx(outcome.p50_s, rel=0.05)
    assert 0 == outcome.refused
    assert 1 == outcome.servers == outcome.peak


def waits_at_most(services: float, load: float) -> float:
    """P(wait <= t) of M/D/1, t in services: Erlang's formula (Gross & Harris, Fundamentals of Queueing Theory, 5.2)."""
    steps = range(math.floor(services) + 1)
    return (1 - load) * sum(
        (-load * (services - k)) ** k / math.factorial(k) * math.exp(load * (services - k)) for k in steps
    )


def test_waiting_agrees_with_queueing_theory() -> None:
    """With one server at half load the 99th percentile of the wait agrees with Erlang's formula."""
    outcome = simulate(ONE_BY_ONE, FIXED, steady(5, 20_000))

    assert 0.99 == pytest.approx(waits_at_most(outcome.p99_s / 0.1 - 1, 0.5), abs=0.003)


def test_twice_the_capacity_refuses_half() -> None:
    """At twice the capacity half of the images are refused, and the others wait for the whole queue."""
    outcome = simulate(ONE_BY_ONE, FIXED, steady(20, 2000))

    assert 0.5 == pytest.approx(outcome.refused, abs=0.03)
    assert 6.4 == pytest.approx(outcome.p99_s, rel=0.1)


def test_batches_carry_what_single_images_cannot() -> None:
    """With batches of four at the price of one, the same load is served without refusals."""
    assert 0 == simulate(IN_BATCHES, FIXED, steady(20, 2000)).refused


def test_a_jump_starts_servers_and_their_absence_is_felt_until_they_are_ready() -> None:
    """Refusals end when new servers are ready, and are fewer when servers start sooner."""
    scaling = Scaling(8, 2, 20)
    slow = simulate(IN_BATCHES, scaling, jump(60, 4))
    quick = simulate(Profile("quick", IN_BATCHES.pass_s, 1, 64, ""), scaling, jump(60, 4))
    fixed = simulate(IN_BATCHES, Scaling(8, 2, 2), jump(60, 4))

    assert quick.refused <= slow.refused < fixed.refused
    assert slow.peak > 2
    assert fixed.servers == 2


def test_the_same_seed_gives_the_same_fleet() -> None:
    """The same seed gives the same result."""
    assert simulate(IN_BATCHES, FIXED, steady(10)) == simulate(IN_BATCHES, FIXED, steady(10))


def test_a_profile_fills_in_what_was_not_measured(tmp_path: Path) -> None:
    """The time of a batch size that was not measured is interpolated linearly."""
    path = tmp_path / "profile.json"
    values = {
        "name": "x",
        "batch_seconds": {"1": 0.1, "4": 0.4},
        "start_seconds": 9,
        "queue_images": 10,
        "measured": "",
    }
    path.write_text(json.dumps(values))
    profile = Profile.read(path)

    assert [0.2, 0.3] == pytest.approx(profile.pass_s[2:4].tolist())
    assert 10 == pytest.approx(profile.capacity)


def test_bounds_that_are_none_are_refused() -> None:
    """Bounds below one server, or a minimum above the maximum, are refused."""
    with pytest.raises(ValueError, match="between 3 and 2"):
        simulate(ONE_BY_ONE, Scaling(16, 3, 2), steady(1))


def test_the_table_has_a_row_for_each_load() -> None:
    """The table has a heading and a row for each load."""
    rows = [{"images_per_s": 10.0} | vars(simulate(IN_BATCHES, FIXED, steady(10)))]

    assert 3 == len(table(rows).splitlines())
    assert "images/s" in table(rows)
