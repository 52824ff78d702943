"""Models are replaced, loaded and unloaded while the service runs. Device processes are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import Draining, LoadFailed, NotReady, UnknownModel
from service.registry.registry import Registry
from tests.service.registry.scripted_models import (
    Fleet,
    answered_by,
    blocks,
    index,
    model,
    quiet,
    running,
    submit,
    until,
    until_indexed,
    write_repository,
)

pytestmark = pytest.mark.anyio
NOT_LOADED = "UNAVAILABLE: not loaded"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository in which `m`, the default model, has two versions, and `n` has one."""
    return write_repository(tmp_path / "models", "m/1", "m/2", "n/1")


@pytest.fixture
async def registry(fleet: Fleet, folder: Path) -> AsyncIterator[Registry]:
    """A registry that serves version 2 of `m`, and `n`; all are ready."""
    async with running(model_repository=folder) as registry:
        yield registry


async def test_a_load_replaces_the_model_for_later_requests(registry: Registry, fleet: Fleet) -> None:
    """The new load has a key of its own and the same number; the serial grows; the other model is not touched."""
    before, other = model(registry, "m").id, model(registry, "n")
    await registry.load("m", "1")
    after = model(registry, "m").id

    assert ("2", "1", before.number, 1) == (before.version, after.version, after.number, registry.state.serial)
    assert other == model(registry, "n")
    assert 3 == await answered_by(registry, after.key) != await answered_by(registry, other.id.key)
    await until(lambda: ["n/1", "m/1"] == fleet.alive)
    await quiet()
    assert {"m/1": "READY", "m/2": NOT_LOADED, "n/1": "READY"} == await index(registry)


async def test_the_default_version_is_the_highest_on_disk(registry: Registry, folder: Path) -> None:
    """A load without a version takes the highest one that is on disk now; a second load starts a new process."""
    write_repository(folder, "m/3")
    await registry.load("m")
    first = model(registry, "m").id
    await registry.load("m")
    second = model(registry, "m").id

    assert ("3", "3", 2) == (first.version, second.version, registry.state.serial)
    assert first.key != second.key


async def test_the_former_version_serves_until_the_new_one_is_ready(registry: Registry, fleet: Fleet) -> None:
    """While a version loads, the index says so, the serial stays, and jobs run on the former version."""
    before = model(registry, "m")
    fleet.pause("m/1")
    load = asyncio.create_task(registry.load("m", "1"))
    await until(lambda: fleet.of("m/1"))

    assert (before, 0) == (model(registry, "m"), registry.state.serial)
    assert {"m/1": "LOADING", "m/2": "READY", "n/1": "READY"} == await index(registry)
    assert 1 == await answered_by(registry, before.id.key)
    fleet.resume("m/1")
    await load
    assert before.id.key != model(registry, "m").id.key


async def test_a_replaced_version_ends_after_its_last_release(registry: Registry, fleet: Fleet) -> None:
    """While it is held, jobs for it run on its own process; after that the process ends and its memory is free."""
    former = model(registry, "m")
    registry.hold(former.id.key)
    registry.hold(former.id.key)
    await registry.load("m", "1")
    both = blocks(registry)
    assert former.area != model(registry, "m").area

    assert 1 == await answered_by(registry, former.id.key)
    assert "UNLOADING" == (await index(registry))["m/2"]
    registry.release(former.id.key)
    await quiet()
    assert 1 == await answered_by(registry, former.id.key)
    registry.release(former.id.key)
    await until(lambda: fleet.of("m/2")[0].closed)
    await quiet()

    assert NOT_LOADED == (await index(registry))["m/2"]
    assert blocks(registry) < both
    with pytest.raises(NotReady, match="unloaded"):
        await submit(registry, former.id.key).done


async def test_reloads_do_not_collect_memory(registry: Registry, fleet: Fleet) -> None:
    """After many reloads the pixels take the memory that they took before, and one process of each model is left."""
    before = blocks(registry)
    for _ in range(10):
        await registry.load("m")
        await until(lambda: 2 == len(fleet.alive))
    await quiet()

    assert before == blocks(registry)
    assert ["n/1", "m/2"] == fleet.alive


async def test_a_load_that_fails_changes_nothing(registry: Registry, fleet: Fleet) -> None:
    """LoadFailed has the reason, which is in the index too; the former version serves, and its process is the only one.

    A later load of the same version succeeds and clears the reason.
    """
    before = model(registry, "m")
    fleet.broken["m/1"] = "not a safetensors file"
    with pytest.raises(LoadFailed, match="^m, version 1: not a safetensors file$"):
        await registry.load("m", "1")

    assert (before, 0) == (model(registry, "m"), registry.state.serial)
    assert {"m/1": "UNAVAILABLE: not a safetensors file", "m/2": "READY", "n/1": "READY"} == await index(registry)
    assert ["m/2", "n/1"] == fleet.alive
    assert 1 == await answered_by(registry, before.id.key)
    assert not registry.failed.is_set()
    fleet.broken.clear()
    await registry.load("m", "1")
    await until_indexed(registry, "m/2", NOT_LOADED)
    assert "READY" == (await index(registry))["m/1"]


async def test_the_version_that_serves_is_ready_after_its_reload_has_failed(registry: Registry, fleet: Fleet) -> None:
    """The index describes what serves: a failed reload of the same version leaves it READY, and gives the reason."""
    fleet.broken["m/2"] = "broken"
    with pytest.raises(LoadFailed):
        await registry.load("m")

    assert "READY: the last load of this version failed: broken" == (await index(registry))["m/2"]
    assert 1 == await answered_by(registry, model(registry, "m").id.key)


async def test_a_version_that_failed_and_was_removed_is_not_listed(
    registry: Registry, fleet: Fleet, folder: Path, tmp_path: Path
) -> None:
    """The index reads the repository again; the reason of a version that is gone is not kept."""
    write_repository(folder, "m/3")
    fleet.broken["m/3"] = "damaged"
    with pytest.raises(LoadFailed):
        await registry.load("m")
    assert "UNAVAILABLE: damaged" == (await index(registry))["m/3"]
    (folder / "m" / "3").rename(tmp_path / "3")

    assert ["m/1", "m/2", "n/1"] == list(await index(registry))


@pytest.mark.parametrize(("name", "version"), [("nope", None), ("m", "3"), ("../models/m", None), ("m", "1/../2")])
async def test_what_does_not_exist_is_not_loaded(
    registry: Registry, fleet: Fleet, name: str, version: str | None
) -> None:
    """A name or version that does not exist raises UnknownModel, and no process is started."""
    with pytest.raises(UnknownModel):
        await registry.load(name, version)

    assert (["m/2", "n/1"], 0) == (fleet.alive, registry.state.serial)


async def test_an_unloaded_model_is_served_no_more(registry: Registry, fleet: Fleet) -> None:
    """Its process ends after the last release, and it is not found; another load brings it back, with its number."""
    former = model(registry, "n").id
    registry.hold(former.key)
    await registry.unload("n")

    assert (None, 1) == (registry.state.find("n"), registry.state.serial)
    assert "UNLOADING" == (await index(registry))["n/1"]
    assert 2 == await answered_by(registry, former.key)
    with pytest.raises(UnknownModel, match="'n' is not loaded"):
        await registry.unload("n")
    registry.release(former.key)
    await until(lambda: ["m/2"] == fleet.alive)
    await quiet()
    assert NOT_LOADED == (await index(registry))["n/1"]
    await registry.load("n")
    assert (former.number, 3) == (model(registry, "n").id.number, len(fleet.devices))


async def test_the_default_model_may_be_unloaded(registry: Registry, fleet: Fleet) -> None:
    """The service goes on with the others and without a default model, which a load brings back."""
    await registry.unload("m")
    await until(lambda: ["n/1"] == fleet.alive)

    assert ("m", None, False) == (registry.state.default, registry.state.find(), registry.failed.is_set())
    assert 2 == await answered_by(registry, model(registry, "n").id.key)
    await registry.load("m", "1")
    assert registry.state.find() is model(registry, "m")


async def test_all_models_may_be_unloaded(registry: Registry, fleet: Fleet) -> None:
    """A service without any model continues."""
    await registry.unload("m")
    await registry.unload("n")
    await until(lambda: not fleet.alive)

    assert ((), False) == (registry.state.models, registry.failed.is_set())
    await registry.load("n")
    assert ["n"] == [one.id.name for one in registry.state.models]


async def test_loads_run_one_after_the_other(registry: Registry, fleet: Fleet) -> None:
    """A second load waits for the first, also of another model; the last one that was asked for serves."""
    fleet.pause("m/1")
    loads = [asyncio.create_task(registry.load(*one)) for one in (("m", "1"), ("n", None), ("m", "2"))]
    await until(lambda: fleet.of("m/1"))
    await quiet()
    assert 3 == len(fleet.devices)
    fleet.resume("m/1")
    await asyncio.gather(*loads)

    assert ["m/2", "n/1", "m/1", "n/1", "m/2"] == [one.version for one in fleet.devices]
    assert ("2", 3) == (model(registry, "m").id.version, registry.state.serial)
    await until(lambda: ["n/1", "m/2"] == fleet.alive)


async def test_a_load_waits_for_the_start(fleet: Fleet, folder: Path) -> None:
    """Until the models of the start have been loaded, nothing else is."""
    fleet.pause("n/1")
    async with running(model_repository=folder, ready=False) as registry:
        await until(lambda: fleet.of("n/1"))
        load = asyncio.create_task(registry.load("m", "1"))
        await quiet()
        assert [] == fleet.of("m/1")
        fleet.resume("n/1")
        await load

        assert "1" == model(registry, "m").id.version


async def test_a_load_that_ends_while_the_service_drains_is_not_used(registry: Registry, fleet: Fleet) -> None:
    """It fails, its process ends, and no model becomes ready; a later load is refused before it starts a process."""
    before = model(registry, "m").id
    fleet.pause("m/1")
    load = asyncio.create_task(registry.load("m", "1"))
    await until(lambda: fleet.of("m/1"))
    registry.drain()
    fleet.resume("m/1")
    with pytest.raises(LoadFailed, match="the service is shutting down"):
        await load
    with pytest.raises(Draining):
        await registry.load("m", "1")

    assert before == model(registry, "m").id
    assert ["draining", "draining"] == [one.phase for one in registry.state.models]
    assert (["m/2", "n/1"], 3) == (fleet.alive, len(fleet.devices))


async def test_the_end_of_the_service_ends_a_load(fleet: Fleet, folder: Path) -> None:
    """When `run` is cancelled during a load, the load ends with an error, and no process is left."""
    async with running(model_repository=folder) as registry:
        fleet.pause("m/1")
        load = asyncio.create_task(registry.load("m", "1"))
        await until(lambda: fleet.of("m/1"))
    async with asyncio.timeout(10):
        [outcome] = await asyncio.gather(load, return_exceptions=True)

    assert isinstance(outcome, LoadFailed)
    assert [] == fleet.alive


async def test_a_cancelled_load_leaves_no_process(registry: Registry, fleet: Fleet) -> None:
    """When the caller of `load` is cancelled, the new process ends, and another load may begin."""
    fleet.pause("m/1")
    load = asyncio.create_task(registry.load("m", "1"))
    await until(lambda: fleet.of("m/1"))
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)

    assert ["m/2", "n/1"] == fleet.alive
    assert {"m/1": NOT_LOADED, "m/2": "READY", "n/1": "READY"} == await index(registry)
    fleet.resume("m/1")
    await registry.load("m", "1")


async def test_a_server_has_had_at_most_64_names(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared counts are kept by name: a load of one name too many is refused, and known names can be loaded."""
    monkeypatch.setattr("service.registry.registry.MODELS", 2)
    write_repository(folder, "o/1")
    with pytest.raises(LoadFailed, match="models of 2 names"):
        await registry.load("o")

    await registry.load("m")
