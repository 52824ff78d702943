"""Models that share a device: who sends the next batch. The device and its clock are simulated."""

from __future__ import annotations

import asyncio
import itertools
import math
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.devices.turns import Turns, background
from tests.service.devices.simulated_turns import Device, Model

SECONDS = st.integers(1, 16).map(lambda eighths: eighths / 8)  # sums are exact
DEPTHS = st.sampled_from([1, 2])
HORIZON = 100.0  # seconds
Flood = tuple[list[float], float]  # the durations of a model's batches, in turn, and its weight
quick = settings(deadline=None, max_examples=40)


def floods(weights: st.SearchStrategy[float], fewest: int = 1) -> st.SearchStrategy[list[Flood]]:
    """Up to four models that always have jobs."""
    return st.lists(st.tuples(st.lists(SECONDS, min_size=1, max_size=4), weights), min_size=fewest, max_size=4)


def flooded(device: Device, flood: list[Flood], depth: int) -> list[Model]:
    """The models of a flood, with jobs for the whole time."""
    models = []
    for seconds, weight in flood:
        model = Model(device, depth=depth, weight=weight)
        model.submit(*seconds * math.ceil(HORIZON / sum(seconds) + 1))
        device.at(0.0, model.wake.set)
        models.append(model)
    return models


@quick
@given(floods(st.just(1.0)), SECONDS, SECONDS, DEPTHS)
def test_a_flood_delays_another_model_by_one_batch(
    flood: list[Flood], seconds: float, first: float, depth: int
) -> None:
    """A job of a model that uses little waits for one batch of each other model, and for those already sent."""
    device = Device()
    flooded(device, flood, depth)
    modest = Model(device)
    longest = [max(each) for each, _ in flood]
    gap = 2 * (len(flood) + 1) * max(*longest, seconds)
    for number in range(4):
        device.at(first + number * gap, lambda: modest.submit(seconds))
    device.run(until=HORIZON)

    assert 4 == len(modest.delays)
    assert max(modest.delays) <= sum(longest) + (depth - 1) * max(longest)


@quick
@given(floods(st.sampled_from([0.25, 1.0, 2.0]), fewest=2), DEPTHS)
def test_busy_models_get_their_shares(flood: list[Flood], depth: int) -> None:
    """Busy models get device seconds in proportion to their weights, to within one batch of each."""
    device = Device()
    models = flooded(device, flood, depth)
    device.run(until=HORIZON)
    longest = [depth * max(seconds) for seconds, _ in flood]

    for (one, batch), (other, other_batch) in itertools.combinations(zip(models, longest, strict=True), 2):
        difference = one.seconds / one.weight - other.seconds / other.weight
        assert abs(difference) <= batch / one.weight + other_batch / other.weight


def test_work_in_the_background_gets_its_share_over_many_claims() -> None:
    """A model that warms up with a weight of 0.1 and a claim for each pass gets a tenth of what the busy one gets."""
    device = Device()
    (busy,) = flooded(device, [([0.5], 1.0)], depth=2)
    loading = Model(device, weight=0.1, background=True)
    loading.submit(*[1.0] * 100)
    device.run(until=HORIZON)

    assert HORIZON / 11 == pytest.approx(loading.seconds, abs=1)
    assert HORIZON * 10 / 11 == pytest.approx(busy.seconds, abs=2)


def test_work_in_the_background_uses_an_idle_device() -> None:
    """Without jobs of others the weight does not matter, and what was used then is not held against a model later."""
    device = Device()
    busy, loading = Model(device), Model(device, weight=0.1, background=True)
    loading.submit(*[1.0] * 100)
    device.at(0.0, loading.wake.set)
    device.at(50.5, lambda: busy.submit(*[0.5] * 100))
    device.run(until=50.75)
    assert 50 == loading.seconds
    device.run(until=73)

    assert 53 == pytest.approx(loading.seconds, abs=1)
    assert [0.5, 1.0] == busy.delays[:2]


def test_idle_time_gives_no_credit() -> None:
    """A model that begins while nobody uses the device has no advantage of what another used before."""
    device = Device()
    early, late = Model(device), Model(device)
    device.at(0.0, lambda: early.submit(*[1.0] * 20))
    device.at(30.0, lambda: late.submit(*[1.0] * 20))
    device.at(30.5, lambda: early.submit(1.0, 1.0))
    device.run()

    assert [0.5, 2.5] == early.delays[20:]


def test_busy_models_change_after_each_batch_in_spite_of_pipelining() -> None:
    """The running batch of a model is counted with its expected time when the model asks for a further one."""
    device = Device()
    models = flooded(device, [([1.0], 1.0)] * 2, depth=2)
    device.run(until=9.5)

    assert [[0.0, 0.0, 4.0, 6.0, 8.0], [2.0, 3.0, 5.0, 7.0, 9.0]] == [model.delays for model in models]


def test_a_turn_that_is_not_used_passes_on() -> None:
    """If the claim that was woken has no batch to send, the other one is woken and may send."""
    turns = Turns().of("cpu")
    wakes = [asyncio.Event(), asyncio.Event()]
    one, other = (turns.join([1], wake) for wake in wakes)
    one.begin()
    assert not other.may_begin()
    one.end(1.0)
    assert [False, True] == [wake.is_set() for wake in wakes]
    assert not one.may_begin()
    other.rest()

    assert wakes[0].is_set()
    assert one.may_begin()


def test_what_the_background_used_while_others_were_idle_is_forgotten() -> None:
    """A pass that nobody waited for does not delay the next pass."""
    turns = Turns().of("cpu")
    claim = turns.join([1], asyncio.Event())
    first = turns.join(None, asyncio.Event(), weight=0.1)
    first.begin()
    first.end(10.0)
    first.leave()
    claim.begin()
    second = turns.join(None, asyncio.Event(), weight=0.1)
    assert not second.may_begin()
    claim.end(1.0)

    assert second.may_begin()


def test_a_model_whose_jobs_were_cancelled_saves_no_credit() -> None:
    """A model that was denied and then had no job for a long time does not bar the other one later."""
    device = Device()
    busy, late = flooded(device, [([1.0], 1.0)], depth=1)[0], Model(device)
    device.at(0.5, lambda: late.submit(1.0))
    device.at(0.75, late.cancel)
    device.at(50.5, lambda: late.submit(*[1.0] * 10))
    device.run(until=61)

    assert 6 == pytest.approx(late.seconds, abs=1)
    assert 55 == pytest.approx(busy.seconds, abs=1)


@quick
@given(
    st.lists(st.booleans(), min_size=1, max_size=4),
    st.lists(
        st.tuples(
            st.integers(0, 80),
            st.integers(0, 3),
            st.sampled_from(["submit", "submit", "submit", "cancel", "restart"]),
            SECONDS,
        ),
        max_size=60,
    ),
    DEPTHS,
)
def test_the_device_is_never_idle_while_a_model_has_jobs(
    backgrounds: list[bool], events: list[tuple[int, int, str, float]], depth: int
) -> None:
    """Whatever is submitted, cancelled or lost at whatever time, some model runs while one has jobs, and all end."""
    device = Device()
    models = [Model(device, depth=1 if hidden else depth, background=hidden) for hidden in backgrounds]
    for quarter, number, what, seconds in events:
        model = models[number % len(models)]
        device.at(quarter / 4, partial(model.submit, seconds) if what == "submit" else getattr(model, what))
    device.run()

    assert not any(model.queue or model.running or model.claim.active for model in models)


@quick
@given(st.lists(SECONDS, max_size=20), st.integers(1, 4))
def test_a_single_claim_is_never_denied(seconds: list[float], depth: int) -> None:
    """A model that is alone on a device may always send, before and after others were there."""
    device = Device()
    model, other = Model(device, depth=depth), Model(device)
    device.at(0.0, lambda: other.submit(1.0))
    device.at(0.5, lambda: model.submit(*seconds))
    device.at(0.75, other.quit)
    device.run()

    assert [0.25] * min(depth, len(seconds)) == model.delays[:depth]
    assert model.claim.may_begin()


def test_the_claim_that_was_served_longest_ago_goes_first() -> None:
    """Of claims with equal accounts that one is next that was served longest ago."""
    device = Device()
    models = flooded(device, [([1.0], 1.0)] * 3, depth=1)
    device.run(until=5.5)

    assert [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] == [model.delays for model in models]


def test_each_device_has_its_own_turns() -> None:
    """A device is known by its name; a claim on one does not bar another."""
    turns = Turns()
    one, other = (turns.of(name).join([1], asyncio.Event()) for name in ("cuda:0", "cuda:1"))
    one.begin()

    assert turns.of("cuda:0") is turns.of("cuda:0")
    assert other.may_begin()


@pytest.mark.anyio
async def test_work_in_the_background_waits_for_its_turn() -> None:
    """The block runs after the batch before it, its time is charged, and a cancelled wait leaves nothing behind."""
    turns = Turns().of("cpu")
    wake = asyncio.Event()
    claim = turns.join([1], wake)
    assert claim.may_begin()
    claim.begin()

    async def warm_up() -> None:
        async with background(turns, 0.1):
            await asyncio.sleep(0.01)

    task, cancelled = asyncio.create_task(warm_up()), asyncio.create_task(warm_up())
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0.001)
    assert turns.shared
    claim.end(1.0)
    assert not claim.may_begin()
    await wake.wait()
    assert claim.may_begin()
    await task

    assert not turns.shared
