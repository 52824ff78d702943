"""The model that a request names is found by name and version, and has its own decoders and pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from model.preprocessing.recipe import Preprocess
from service.engine.models import DEFAULT, Models, Wanted, find
from service.errors import UnknownModel
from service.images.decode import DecodeLimits, Decoder
from service.images.isolated.process import DecoderProcesses
from service.images.memory_budget import MemoryBudget
from service.status import BackendState, ModelId, ModelState
from service.system.shared_counts import alone
from service.telemetry.metrics import Metrics
from tests.service.devices.scripted_devices import model_info
from tests.service.engine.fake_backend import FakeBackend

A, B = (ModelState(ModelId(name, version, key, key - 1)) for name, version, key in (("a", "1", 1), ("b", "7", 2)))
BOTH = BackendState("a", (A, B))


def test_a_model_is_found_by_its_name() -> None:
    """Each name finds its model, with and without the version that is served."""
    assert [A, B] == [find(BOTH, Wanted("a")), find(BOTH, Wanted("b"))]
    assert B is find(BOTH, Wanted("b", "7"))


def test_the_default_model_is_found_without_a_name() -> None:
    """A request that names no model gets the default one, wherever it is among the models."""
    assert A is find(BOTH, DEFAULT)
    assert B is find(dataclasses.replace(BOTH, default="b"), DEFAULT)
    assert A is find(BOTH, Wanted(None, "1"))


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    """The error quotes at most 100 characters of the name, and names at most ten models."""
    many = BackendState("m0", tuple(ModelState(ModelId(f"m{number}")) for number in range(12)))

    with pytest.raises(UnknownModel, match=r"^Request for unknown model: 'c' is not found; this server has 'a', 'b'$"):
        find(BOTH, Wanted("c"))
    with pytest.raises(UnknownModel) as refused:
        find(many, Wanted("x" * 300))
    assert f"'{'x' * 100}' is" in refused.value.detail
    assert refused.value.detail.endswith("'m9'")
    with pytest.raises(UnknownModel, match="''"):
        find(BOTH, Wanted(""))


@pytest.mark.parametrize("version", ["1", "8", "07", "", "x" * 300])
def test_another_version_than_the_served_one_is_refused(version: str) -> None:
    """The error names the version that is served."""
    with pytest.raises(UnknownModel, match=r"'b' version '.*' is not found; the version that is served is 7$") as error:
        find(BOTH, Wanted("b", version))
    assert len(error.value.detail) < 150


def test_without_its_default_model_a_server_asks_for_a_name() -> None:
    """When the default model was unloaded, requests that name none are refused and others are not."""
    only_b, nothing = BackendState("a", (B,)), BackendState("a", ())

    with pytest.raises(UnknownModel, match="the default model is not loaded; name another; this server has 'b'"):
        find(only_b, DEFAULT)
    with pytest.raises(UnknownModel, match="this server has no model"):
        find(nothing, DEFAULT)
    assert B is find(only_b, Wanted("b"))


def test_before_the_models_are_known_every_name_finds_one_that_starts() -> None:
    """A server that does not know its models yet cannot call a name unknown; the request gets 503, not 404."""
    early = BackendState()

    for wanted in (DEFAULT, Wanted("a")):
        assert ("starting", False) == (find(early, wanted).phase, find(early, wanted).has_been_ready)


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    """A backend with four slots."""
    backend = FakeBackend(4)
    yield backend
    backend.slots.close()


def models(backend: FakeBackend) -> Models:
    """The parts of the models of a backend; nothing is decoded."""
    limits, counts = DecodeLimits(1, 1), alone(2)

    def decoder(recipe: Preprocess) -> Decoder:
        return Decoder(recipe, limits, MemoryBudget(1, 1, counts[0], counts[1]), None, DecoderProcesses(1))

    return Models(backend, Metrics(queue_capacity=4), decoder)


def loaded(backend: FakeBackend, key: int, size: int) -> ModelState:
    """A model that is ready, with an area of this size in the backend's slots."""
    info = dataclasses.replace(model_info(), image_size=size, preprocess=Preprocess().to_dict())
    area = backend.slots.add(size)
    return ModelState(ModelId("m", str(key), key, 0), "ready", has_been_ready=True, model=info, area=area)


def test_each_load_has_parts_of_its_own(backend: FakeBackend) -> None:
    """Two loads have pixels of their sizes in different memory; the parts of one load are made once."""
    parts = models(backend)
    first, second = loaded(backend, 1, 8), loaded(backend, 2, 16)
    backend.model = first
    small, large = parts.of(first), parts.of(second)
    small.pixels[...], large.pixels[...] = 1, 2

    assert small is parts.of(first)
    assert (8, 16) == (small.pixels.shape[1], large.pixels.shape[1])
    assert ({1}, {2}) == (set(small.pixels.flat), set(large.pixels.flat))
    assert {"center", "full"} <= set(small.decoders)


def test_the_parts_of_a_replaced_load_are_not_kept(backend: FakeBackend) -> None:
    """When a load is used that was not used before, the parts of loads that are not current are dropped."""
    parts = models(backend)
    first, second = loaded(backend, 1, 8), loaded(backend, 2, 8)
    backend.model = first
    old = parts.of(first)
    backend.model = second
    new = parts.of(second)

    assert new is parts.of(second)
    assert old is not parts.of(first)
