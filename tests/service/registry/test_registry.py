"""The start and the end of several models, and whose device processes run a job. Devices are scripted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.errors import NotReady, SettingsError
from service.registry.registry import Registry
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.registry.scripted_models import (
    Fleet,
    answered_by,
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
LISTED = "b=b/1,a=a/1,c=c/1"


async def test_models_start_one_after_the_other_the_default_first(fleet: Fleet) -> None:
    """The next model begins to load when the one before it is ready; the first of the list is the default."""
    async with running(models=LISTED) as registry:
        assert [f"{step} {name}/1" for name in "bac" for step in ("load", "ready")] == fleet.steps
        assert ("b", ["b", "a", "c"]) == (registry.state.default, [one.id.name for one in registry.state.models])
        assert registry.state.find() is model(registry, "b")


async def test_the_default_model_serves_while_the_others_load(fleet: Fleet) -> None:
    """Until a model is ready it is LOADING in the index, and the default model answers already."""
    fleet.pause("a/1")
    async with running(models=LISTED, ready=False) as registry:
        await until(lambda: fleet.of("a/1"))

        assert {"a/1": "LOADING", "b/1": "READY", "c/1": "LOADING"} == await index(registry)
        assert 1 == await answered_by(registry, model(registry, "b").id.key)
        fleet.resume("a/1")
        for version in ("a/1", "b/1", "c/1"):
            await until_indexed(registry, version, "READY")


async def test_a_job_runs_on_the_processes_of_its_model(fleet: Fleet) -> None:
    """Jobs of three models are answered by three processes; a job for no model gets 503 and can be sent again."""
    async with running(models=LISTED) as registry:
        keys = [one.id.key for one in registry.state.models]

        assert [1, 2, 3] == await asyncio.gather(*(answered_by(registry, key) for key in keys))
        with pytest.raises(NotReady, match="the model was unloaded") as refused:
            await submit(registry, max(keys) + 1).done
        assert 1 == refused.value.retry_after_s
        assert set(keys) == registry.seconds_per_image.keys()
        assert all(seconds > 0 for seconds in registry.seconds_per_image.values())


async def test_a_cancelled_job_is_not_run(fleet: Fleet) -> None:
    """A job that is cancelled while it waits is removed from the queue of its model, and abandoned ones fail."""
    async with running(models=LISTED) as registry:
        key = model(registry, "a").id.key
        dropped, kept = submit(registry, key), submit(registry, key)
        registry.cancel(dropped)
        registry.promote(kept)
        await kept.done
        left = submit(registry, key)
        registry.abandon(NotReady("ended"))

        assert not dropped.done.done()
        dropped.done.cancel()
        with pytest.raises(NotReady, match="ended"):
            await left.done


async def test_another_model_that_cannot_be_loaded_does_not_end_the_service(fleet: Fleet) -> None:
    """The other models serve; the index has the reason, and the models after it are loaded too."""
    fleet.broken["a/1"] = "no such file"
    async with running(models=LISTED) as registry:
        assert not registry.failed.is_set()
        assert "failed" == model(registry, "a").phase
        assert {"a/1": "UNAVAILABLE: no such file", "b/1": "READY", "c/1": "READY"} == await index(registry)
        with pytest.raises(NotReady):
            await submit(registry, model(registry, "a").id.key).done


async def test_a_model_that_failed_at_the_start_can_be_loaded_later(fleet: Fleet) -> None:
    """A load after the cause is gone replaces the model that has failed."""
    fleet.broken["a/1"] = "no such file"
    async with running(models=LISTED) as registry:
        fleet.broken.clear()
        await registry.load("a")
        await until(lambda: ["a/1"] == [one.version for one in fleet.devices if one.closed])

        assert {"READY"} == set((await index(registry)).values())
        assert 4 == await answered_by(registry, model(registry, "a").id.key)


async def test_a_default_model_that_cannot_be_loaded_ends_the_service(fleet: Fleet) -> None:
    """`failed` is set, and the state has the reason for the log."""
    fleet.broken["b/1"] = "no such file"
    async with running(models=LISTED) as registry:
        await registry.failed.wait()
        default = registry.state.find()

        assert default is not None
        assert ("failed", "no such file") == (default.phase, default.failure)


async def test_drain_reports_every_model(fleet: Fleet) -> None:
    """After `drain` no model is ready, and running jobs are answered."""
    async with running(models=LISTED) as registry:
        registry.drain()

        assert ["draining"] * 3 == [one.phase for one in registry.state.models]
        assert 1 == await answered_by(registry, model(registry, "b").id.key)


async def test_all_processes_end_with_the_registry(fleet: Fleet) -> None:
    """`close` ends the processes of all models, also of one that still loads."""
    fleet.pause("c/1")
    async with running(models=LISTED, ready=False):
        await until(lambda: fleet.of("c/1"))
        assert ["b/1", "a/1", "c/1"] == fleet.alive

    assert [] == fleet.alive


async def test_versions_on_disk_that_are_not_loaded_are_in_the_index(fleet: Fleet, tmp_path: Path) -> None:
    """Only the highest version of each model is loaded; the others are UNAVAILABLE and say that they are not loaded."""
    folder = write_repository(tmp_path / "models", "m/1", "m/2", "m/10", "n/3")
    async with running(model_repository=folder) as registry:
        missing = "UNAVAILABLE: not loaded"
        assert {"m/1": missing, "m/10": "READY", "m/2": missing, "n/3": "READY"} == await index(registry)
        assert ["m/10", "n/3"] == fleet.alive
        write_repository(folder, "o/1")
        await registry.load("o")
        await quiet()

        assert "READY" == (await index(registry))["o/1"]
        assert "m" == registry.state.default


async def test_a_repository_without_models_ends_the_start(tmp_path: Path) -> None:
    """The error names the setting and the folder."""
    folder = tmp_path

    with pytest.raises(SettingsError, match=f"VIM_MODEL_REPOSITORY={folder} has no models"):
        Registry(Settings(model_repository=folder), Metrics(queue_capacity=1))
