"""Several models share the limits on images and bytes: each keeps a guaranteed part under a flood on another one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.devices.usage import Usage
from service.engine.admission import Admission, BodyAccount, Quota
from service.errors import BodyTooLarge, MemoryFull, QueueFull, TooManyImages
from service.jobs import RequestClass
from service.settings import Settings
from service.status import BackendState, ModelId, ModelState
from tests.service.engine.fake_backend import FakeBackend

SETTINGS = Settings(queue_images=8, queue_bytes=1000, bulk_percent=50, max_images=4, max_body_bytes=500)


class SeveralModels(FakeBackend):
    """A backend with models; the number of each is its place."""

    def __init__(self, count: int) -> None:
        super().__init__(SETTINGS.queue_images)
        self.models = tuple(ModelState(ModelId(f"m{number}", "1", number + 1, number)) for number in range(count))

    @property
    def state(self) -> BackendState:
        """The state with these models."""
        return BackendState("m0", self.models)


@pytest.fixture
def make() -> Iterator[Callable[[int], tuple[Admission, SeveralModels]]]:
    """Makes the admission of a server with some models: eight images and 1,000 bytes, half of them for bulk."""
    backends = []

    def make(count: int) -> tuple[Admission, SeveralModels]:
        backends.append(backend := SeveralModels(count))
        return Admission(SETTINGS, backend, 1), backend

    yield make
    for backend in backends:
        backend.slots.close()


Make = Callable[[int], tuple[Admission, SeveralModels]]


def flood(control: Admission, model: ModelState, request_class: RequestClass = "interactive") -> list[int]:
    """Admit single images until one is refused; returns their slots."""
    slots: list[int] = []
    with contextlib.suppress(QueueFull):
        while True:
            slots += control.admit(request_class, 1, model=model)
    return slots


@pytest.mark.parametrize(("models", "flooding", "left"), [(1, 8, 0), (2, 6, 2), (4, 5, 1), (5, 8, 0)])
def test_a_flood_leaves_the_guaranteed_images(make: Make, models: int, flooding: int, left: int) -> None:
    """A flood on one model gets all but half of an equal share of each other model, rounded down."""
    control, backend = make(models)
    slots = flood(control, backend.models[0])

    assert flooding == len(slots)
    for other in backend.models[1:]:
        if left:
            assert left == len(control.admit("interactive", left, model=other))
    assert 8 == control.images


def test_what_a_model_uses_of_its_part_is_not_kept_twice(make: Make) -> None:
    """An image of the other model counts for its part, so that the flood still gets six of eight images."""
    control, backend = make(2)
    control.admit("interactive", 1, model=backend.models[1])

    assert 6 == len(flood(control, backend.models[0]))
    assert 1 == len(flood(control, backend.models[1]))


def test_bulk_leaves_the_guaranteed_images_too(make: Make) -> None:
    """Bulk may use its percentage, and never what is guaranteed to another model."""
    control, backend = make(2)
    control.admit("interactive", 4, model=backend.models[0])

    assert 2 == len(flood(control, backend.models[0], "bulk"))
    assert 2 == len(flood(control, backend.models[1], "bulk"))


@pytest.mark.parametrize("models", [1, 2, 5])
def test_the_largest_request_always_has_room(make: Make, models: int) -> None:
    """The guaranteed parts leave room for a request of VIM_MAX_IMAGES images and VIM_MAX_BODY_BYTES bytes."""
    control, backend = make(models)

    BodyAccount(control, "interactive", 0).receive(500)
    assert 4 == len(control.admit("interactive", 4, model=backend.models[0]))


def test_what_can_never_fit_is_the_same_with_several_models(make: Make) -> None:
    """A request that exceeds a limit gets 413, with the limit in the error."""
    control, backend = make(2)

    with pytest.raises(TooManyImages, match=r"9 images in one request; the limit is 8 \(VIM_QUEUE_IMAGES\)"):
        control.admit("interactive", 9, model=backend.models[1])
    with pytest.raises(TooManyImages, match="the limit is 4"):
        control.admit("bulk", 5, model=backend.models[1])
    with pytest.raises(BodyTooLarge, match=r"the limit is 1000 \(VIM_QUEUE_BYTES\)"):
        BodyAccount(control, "interactive", 1).receive(1001)


def test_a_flood_leaves_the_guaranteed_bytes(make: Make) -> None:
    """Bodies for one model leave the others a quarter of the bytes of two models, also before they are read."""
    control, _ = make(2)
    BodyAccount(control, "interactive", 0).receive(750)

    for ask in (BodyAccount(control, "interactive", 0).receive, BodyAccount(control, "interactive", 0).expect):
        with pytest.raises(MemoryFull, match="bodies of 750 of 1000 bytes in memory.*for interactive 1000 at most"):
            ask(1)
    other = BodyAccount(control, "interactive", 1)
    other.expect(250)
    other.receive(250)
    with pytest.raises(MemoryFull):
        other.receive(1)


def test_a_body_is_counted_for_the_model_that_it_names(make: Make) -> None:
    """`move` gives the bytes of the former model free and counts them for the new one, until the account is closed."""
    control, backend = make(2)
    usage = backend.slots.usage
    account = BodyAccount(control, "bulk", 0)
    account.receive(300)
    account.move(1)
    assert ((0, 300), 300) == (
        (usage.body_bytes_of[0].own[0], usage.body_bytes_of[1].own[0]),
        usage.body_bytes["bulk"].own[0],
    )
    account.receive(50)
    account.release(100)
    assert (0, 250) == (usage.body_bytes_of[0].own[0], usage.body_bytes_of[1].own[0])
    account.close()

    assert (0, 0, 0) == (
        usage.body_bytes_of[0].own[0],
        usage.body_bytes_of[1].own[0],
        usage.body_bytes["bulk"].own[0],
    )


def test_a_move_is_never_refused(make: Make) -> None:
    """The bytes are in memory already: they are counted for the other model even beyond what it could have received."""
    control, backend = make(2)
    BodyAccount(control, "interactive", 1).receive(250)
    account = BodyAccount(control, "interactive", 0)
    account.receive(750)
    account.move(1)

    assert 1000 == backend.slots.usage.body_bytes_of[1].own[0]
    with pytest.raises(MemoryFull):
        BodyAccount(control, "interactive", 0).receive(1)


def test_a_model_that_was_unloaded_keeps_nothing(make: Make) -> None:
    """After an unload the others may use everything that its last requests do not."""
    control, backend = make(2)
    slots = control.admit("interactive", 1, model=backend.models[1])
    backend.models = backend.models[:1]

    assert 7 == len(flood(control, backend.models[0]))
    control.leave(slots, 1, answered=False)
    assert 1 == len(flood(control, backend.models[0]))


def test_a_server_without_models_has_a_queue(make: Make) -> None:
    """While every model is unloaded the limits are those of one model."""
    control, _ = make(0)
    BodyAccount(control, "interactive", 0).receive(1000)

    assert 8 == len(control.admit("interactive", 8))


Event = tuple[bool, int, RequestClass, int]  # arrival or end, model, class, size
EVENTS = st.tuples(st.booleans(), st.integers(0, 4), st.sampled_from(("interactive", "bulk")), st.integers(0, 40))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5), st.integers(0, 60), st.integers(0, 60), st.lists(EVENTS, max_size=60))
def test_no_sequence_exceeds_the_limit_or_takes_a_guaranteed_part(
    models: int, limit: int, largest: int, events: list[Event]
) -> None:
    """Whatever was admitted, the sum stays within the limit and that of bulk within its percentage.

    An interactive request that stays within the guaranteed part of its model always has room.
    """
    usage = Usage.alone()
    quota = Quota(limit, largest, SETTINGS.bulk_percent, usage.images, usage.images_of)
    numbers = range(models)
    part = min(limit // (2 * models), max(0, limit - largest) // (models - 1)) if models > 1 else 0
    admitted: list[tuple[int, RequestClass, int]] = []
    for arrives, place, request_class, size in events:
        if arrives:
            model, sign = place % models, 1
            if not quota.has_room(request_class, model, numbers, size):
                assert request_class == "bulk" or quota.used_of(model) + size > part
                continue
            assert size <= quota.most(request_class)
            admitted.append((model, request_class, size))
        elif admitted:
            model, request_class, size = admitted.pop(place % len(admitted))
            sign = -1
        else:
            continue
        usage.images[request_class].own[0] += sign * size
        usage.images_of[model].own[0] += sign * size

        assert quota.used == sum(quota.used_of(number) for number in numbers) <= limit
        assert quota.used_by("bulk") <= max(1, limit // 2)
