"""KServe's Python SDK: its REST client with protocol v2, and its gRPC client.

tritonclient.grpc cannot be imported beside it: both register the messages of the protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.clients import native
from tests.clients.pictures import HEIGHT, WIDTH, picture, pixels
from tests.clients.servers import MAX_BODY, NAME, Servers

kserve: Any = pytest.importorskip("kserve", reason="make test-clients installs kserve")
np: Any = pytest.importorskip("numpy")
pytestmark = pytest.mark.filterwarnings("ignore")

PNG = picture()


def with_client(work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run `work` with a client that does not retry."""

    async def run() -> Any:
        return await work(kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=120, retries=0)))

    return asyncio.run(run())


def encoded(image: bytes) -> Any:
    """A request to the model NAME with an encoded image."""
    tensor = kserve.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], dtype=object), binary_data=True)
    return kserve.InferRequest(NAME, [tensor])


def infer(url: str, request: Any, model: str = NAME) -> dict[str, Any]:
    """The outputs of an inference by name."""
    answer = with_client(lambda client: client.infer(url, request, model_name=model))
    return {one.name: one.as_numpy() for one in answer.outputs}


def refused(url: str, image: bytes, model: str = NAME) -> str:
    """The text of the error that a request ends with."""
    with pytest.raises(Exception, match=r"\d\d\d") as caught:
        infer(url, encoded(image), model)
    return str(caught.value)


def test_health(servers: Servers) -> None:
    """The bodies of the probes are parsed; not ready is an error there."""
    assert with_client(lambda one: one.is_server_live(servers.normal))
    assert with_client(lambda one: one.is_server_ready(servers.normal))
    assert with_client(lambda one: one.is_model_ready(servers.normal, NAME))
    assert not with_client(lambda one: one.is_model_ready(servers.starting, NAME))
    with pytest.raises(Exception, match="503"):
        with_client(lambda one: one.is_server_ready(servers.starting))


def test_encoded_images(servers: Servers) -> None:
    """The outputs for an encoded image are equal to the native answer."""
    found = infer(servers.normal, encoded(PNG))
    best, score = native.classes(servers.normal, PNG, 1)[0]

    np.testing.assert_allclose(found["embedding"][0], native.embedding(servers.normal, PNG), atol=native.TOLERANCE)
    assert score == pytest.approx(float(found["scores"].max()), abs=native.TOLERANCE)
    assert best in str(found["labels"][0])


@pytest.mark.parametrize("binary", [True, False])
def test_pixels(servers: Servers, binary: bool) -> None:
    """The model NAME-tensor takes pixels, raw and as JSON."""
    array = np.frombuffer(pixels(), np.uint8).reshape(1, HEIGHT, WIDTH, 3)
    tensor = kserve.InferInput("image", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array, binary_data=binary)
    request = kserve.InferRequest(NAME + "-tensor", [tensor])
    found = infer(servers.normal, request, NAME + "-tensor")["embedding"]

    np.testing.assert_allclose(found[0], native.embedding(servers.normal, PNG), atol=native.TOLERANCE)


def test_errors(servers: Servers) -> None:
    """The client's error contains the service's message, because the Content-Type is exactly application/json."""
    assert "unknown model: 'nope'" in refused(servers.normal, PNG, "nope")
    assert "not an image" in refused(servers.normal, b"junk")
    assert "VIM_MAX_BODY_BYTES" in refused(servers.normal, bytes(MAX_BODY))
    assert "being loaded" in refused(servers.starting, PNG)
    with servers.held_full():
        assert "VIM_QUEUE_IMAGES" in refused(servers.full, PNG)


def with_grpc(address: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run `work` with a gRPC client that does not retry."""

    async def run() -> Any:
        async with kserve.InferenceGRPCClient(address, channel_args=[("grpc.enable_retries", 0)], timeout=60) as one:
            return await work(one)

    return asyncio.run(run())


def test_grpc(servers: Servers) -> None:
    """The gRPC client reads readiness, and gets the outputs of encoded images and of pixels."""
    array = np.frombuffer(pixels(), np.uint8).reshape(1, HEIGHT, WIDTH, 3)
    tensor = kserve.InferInput("image", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array)

    async def both(one: Any) -> list[Any]:
        return [await one.infer(encoded(PNG)), await one.infer(kserve.InferRequest(NAME + "-tensor", [tensor]))]

    for answer in with_grpc(servers.grpc_normal, both):
        found = {one.name: one.as_numpy() for one in answer.outputs}
        best, score = native.classes(servers.normal, PNG, 1)[0]
        np.testing.assert_allclose(found["embedding"][0], native.embedding(servers.normal, PNG), atol=native.TOLERANCE)
        assert score == pytest.approx(float(found["scores"].max()), abs=native.TOLERANCE)
        assert best in str(found["labels"][0])

    assert with_grpc(servers.grpc_normal, lambda one: one.is_server_live())
    assert with_grpc(servers.grpc_normal, lambda one: one.is_server_ready())
    assert with_grpc(servers.grpc_normal, lambda one: one.is_model_ready(NAME))
    assert not with_grpc(servers.grpc_starting, lambda one: one.is_model_ready(NAME))


@pytest.mark.parametrize(
    ("model", "image", "status", "says"),
    [
        ("nope", PNG, "NOT_FOUND", "unknown model: 'nope'"),
        (NAME, b"junk", "INVALID_ARGUMENT", "not an image"),
        (NAME, bytes(MAX_BODY), "INVALID_ARGUMENT", "VIM_MAX_BODY_BYTES"),
    ],
)
def test_errors_over_grpc(servers: Servers, model: str, image: bytes, status: str, says: str) -> None:
    """The gRPC client raises grpc's error with status and text."""
    tensor = kserve.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], dtype=object))
    request = kserve.InferRequest(model, [tensor])
    with pytest.raises(Exception, match=says) as caught:
        with_grpc(servers.grpc_normal, lambda one: one.infer(request))
    error: Any = caught.value

    assert status == error.code().name
