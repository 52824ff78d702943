"""Several HTTP processes use the models: a switch waits for all of them, and an old version for its last user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.registry.registry import Registry
from tests.service.registry.scripted_models import (
    Fleet,
    User,
    answered_by,
    model,
    quiet,
    running,
    until,
    write_repository,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def registry(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry that serves version 2 of `m`."""
    async with running(model_repository=write_repository(tmp_path, "m/1", "m/2")) as registry:
        yield registry


async def loading(registry: Registry, *, serial: int = 1) -> asyncio.Task[None]:
    """A load of version 1 that has replaced the state and waits for the users."""
    load = asyncio.create_task(registry.load("m", "1"))
    await until(lambda: registry.state.serial == serial)
    await quiet()
    return load


async def test_a_switch_waits_until_every_user_has_confirmed_it(registry: Registry, fleet: Fleet) -> None:
    """Version 1 is in the state at once; the load returns, and version 2 ends, when all users have confirmed."""
    one, two = User(), User()
    registry.users |= {one, two}
    former = model(registry, "m").id.key
    load = await loading(registry)
    assert "1" == model(registry, "m").id.version

    for user in (one, two):
        assert (False, ["m/2", "m/1"]) == (load.done(), fleet.alive)
        assert 1 == await answered_by(registry, former)
        user.seen = registry.state.serial
        registry.users_changed()
        await quiet()

    await load
    await until(lambda: ["m/1"] == fleet.alive)


async def test_a_replaced_version_is_kept_for_a_user_that_still_uses_it(registry: Registry, fleet: Fleet) -> None:
    """The load returns after the confirmations; version 2 answers until its last user has finished with it."""
    one, two = User(seen=1), User(seen=1)
    registry.users |= {one, two}
    former = model(registry, "m").id.key
    one.used, two.used = {former}, {former}
    await registry.load("m", "1")

    for user in (one, two):
        await quiet()
        assert 1 == await answered_by(registry, former)
        user.used.clear()
        registry.users_changed()

    await until(lambda: ["m/1"] == fleet.alive)


async def test_a_user_that_has_ended_counts_no_more(registry: Registry, fleet: Fleet) -> None:
    """Neither the switch nor the end of a version waits for an HTTP process that is gone."""
    silent, user = User(), User(seen=1)
    registry.users |= {silent, user}
    user.used = {model(registry, "m").id.key}
    load = await loading(registry)
    assert not load.done()
    registry.users.discard(silent)
    registry.users_changed()
    await load
    await quiet()
    assert ["m/2", "m/1"] == fleet.alive
    registry.users.discard(user)
    registry.users_changed()

    await until(lambda: ["m/1"] == fleet.alive)


async def test_an_unload_waits_for_the_users_too(registry: Registry, fleet: Fleet) -> None:
    """An unload returns when every user has confirmed that the model is gone."""
    user = User()
    registry.users.add(user)
    user.used = {model(registry, "m").id.key}
    unload = asyncio.create_task(registry.unload("m"))
    await quiet()
    assert (None, False) == (registry.state.find("m"), unload.done())
    user.seen = 1
    registry.users_changed()
    await unload
    await quiet()
    assert ["m/2"] == fleet.alive
    user.used.clear()
    registry.users_changed()

    await until(lambda: not fleet.alive)


async def test_a_second_load_waits_for_the_switch_of_the_first(registry: Registry, fleet: Fleet) -> None:
    """A user that is late delays later loads, whose processes are not started before it has confirmed."""
    user = User()
    registry.users.add(user)
    first = await loading(registry)
    second = asyncio.create_task(registry.load("m", "2"))
    await quiet()
    assert 2 == len(fleet.devices)
    user.seen = 2
    registry.users_changed()
    await asyncio.gather(first, second)

    assert ("2", 2) == (model(registry, "m").id.version, registry.state.serial)


async def test_several_replaced_versions_end_each_at_its_time(registry: Registry, fleet: Fleet) -> None:
    """A version that is still used does not keep later ones, which were replaced after it."""
    user = User(seen=10)
    registry.users.add(user)
    user.used = {model(registry, "m").id.key}
    await registry.load("m", "1")
    await registry.load("m", "1")
    await until(lambda: ["m/2", "m/1"] == fleet.alive)
    user.used.clear()
    registry.users_changed()

    await until(lambda: ["m/1"] == fleet.alive)
    assert 3 == await answered_by(registry, model(registry, "m").id.key)


async def test_a_held_version_is_kept_besides_the_users(registry: Registry, fleet: Fleet) -> None:
    """A hold and a user each keep a version; it ends when neither is left."""
    user = User(seen=1)
    registry.users.add(user)
    former = model(registry, "m").id.key
    user.used = {former}
    registry.hold(former)
    await registry.load("m", "1")
    registry.release(former)
    await quiet()
    assert ["m/2", "m/1"] == fleet.alive
    user.used.clear()
    registry.users_changed()

    await until(lambda: ["m/1"] == fleet.alive)
