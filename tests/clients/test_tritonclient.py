"""NVIDIA's tritonclient over HTTP, as it is used with Triton."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from tests.clients import native
from tests.clients.opened import opened
from tests.clients.pictures import HEIGHT, WIDTH, picture, pixels
from tests.clients.servers import ADMIN, MAX_BODY, NAME, Servers

pytest.importorskip("geventhttpclient", reason="make test-clients installs tritonclient[http]")
triton: Any = pytest.importorskip("tritonclient.http")
aio: Any = pytest.importorskip("tritonclient.http.aio")
np: Any = pytest.importorskip("numpy")
pytestmark = pytest.mark.filterwarnings("ignore")

PNG = picture()


def client(url: str) -> Any:
    """A client whose address has no scheme."""
    return opened(triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=120))


def encoded(*images: bytes, binary: bool = True) -> Any:
    """The input of the model NAME with encoded images."""
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[one] for one in images], dtype=object), binary_data=binary)
    return tensor


def refused(url: str, tensor: Any, model: str = NAME, **more: Any) -> Any:
    """The exception that a request ends with; its text must be readable."""
    with pytest.raises(triton.InferenceServerException) as caught:
        client(url).infer(model, [tensor], **more)
    assert str(caught.value)
    return caught.value


def test_health_and_metadata(servers: Servers) -> None:
    """The client reads readiness and metadata of server and model."""
    good, early = client(servers.normal), client(servers.starting)

    assert (True, True, True, False) == (
        good.is_server_live(),
        good.is_server_ready(),
        good.is_model_ready(NAME),
        good.is_model_ready("nope"),
    )
    assert (True, False, False) == (early.is_server_live(), early.is_server_ready(), early.is_model_ready(NAME))
    assert "statistics" in good.get_server_metadata()["extensions"]
    assert "BYTES" == good.get_model_metadata(NAME, "1")["inputs"][0]["datatype"]
    assert "TYPE_UINT8" == good.get_model_config(NAME + "-tensor")["input"][0]["data_type"]


@pytest.mark.parametrize("binary", [True, False])
def test_encoded_images(servers: Servers, binary: bool) -> None:
    """Every output, raw and as JSON, equals the native answer; the id comes back."""
    names = ("scores", "embedding", "labels")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    images = [PNG, picture(1)]
    result = client(servers.normal).infer(NAME, [encoded(*images)], outputs=outputs, request_id="abc")
    labels = [label if isinstance(label, str) else label.decode() for (label,) in result.as_numpy("labels")]

    assert "abc" == result.get_response()["id"]
    for index, image in enumerate(images):
        best, score = native.classes(servers.normal, image, 1)[0]
        assert best == labels[index]
        assert score == pytest.approx(float(result.as_numpy("scores")[index].max()), abs=native.TOLERANCE)
        expected = native.embedding(servers.normal, image)
        np.testing.assert_allclose(result.as_numpy("embedding")[index], expected, atol=native.TOLERANCE)


def test_no_outputs_named(servers: Servers) -> None:
    """Without named outputs the client gets all of them as raw tensors."""
    result = client(servers.normal).infer(NAME, [encoded(PNG)])

    assert (1, 7) == result.as_numpy("scores").shape
    assert (1, 32) == result.as_numpy("embedding").shape


@pytest.mark.parametrize("binary", [True, False])
def test_pixels(servers: Servers, binary: bool) -> None:
    """NAME-tensor: the pixels of a lossless file give that file's embedding."""
    array = np.frombuffer(pixels(), np.uint8).reshape(1, HEIGHT, WIDTH, 3)
    tensor = triton.InferInput("image", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array, binary_data=binary)
    found = client(servers.normal).infer(NAME + "-tensor", [tensor]).as_numpy("embedding")

    np.testing.assert_allclose(found[0], native.embedding(servers.normal, PNG), atol=native.TOLERANCE)


def test_classification(servers: Servers) -> None:
    """Classes have the form value:index:label, with the best one first."""
    output = triton.InferRequestedOutput("scores", class_count=3)
    found = client(servers.normal).infer(NAME, [encoded(PNG)], outputs=[output]).as_numpy("scores")
    expected = native.classes(servers.normal, PNG, 3)

    assert [label for label, _ in expected] == [one.decode().split(":")[2] for one in found[0]]
    for (_, score), one in zip(expected, found[0], strict=True):
        assert score == pytest.approx(float(one.decode().split(":")[0]), abs=native.TOLERANCE)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(servers: Servers, coding: str) -> None:
    """A compressed request is accepted; the answer need not be compressed."""
    result = client(servers.normal).infer(
        NAME, [encoded(PNG)], request_compression_algorithm=coding, response_compression_algorithm=coding
    )

    assert (1, 7) == result.as_numpy("scores").shape


def test_statistics(servers: Servers) -> None:
    """The statistics count the requests of this test."""
    one = client(servers.normal)
    before = one.get_inference_statistics(NAME)["model_stats"][0]["inference_count"]
    one.infer(NAME, [encoded(PNG, picture(1))])

    assert 2 == one.get_inference_statistics(NAME)["model_stats"][0]["inference_count"] - before


def test_asyncio(servers: Servers) -> None:
    """tritonclient on aiohttp gets the same answers, and its errors have the same text."""

    async def run() -> tuple[Any, str]:
        async with aio.InferenceServerClient(servers.normal.removeprefix("http://")) as one:
            result = await one.infer(NAME, [encoded(PNG)])
            with pytest.raises(triton.InferenceServerException) as caught:
                await one.infer("nope", [encoded(PNG)])
            return result.as_numpy("embedding")[0], str(caught.value)

    found, error = asyncio.run(run())

    np.testing.assert_allclose(found, native.embedding(servers.normal, PNG), atol=native.TOLERANCE)
    assert "unknown model: 'nope'" in error


def test_errors_of_the_request(servers: Servers) -> None:
    """Errors of the request are 404, 400, 415 and 413, each with its message."""
    floats = triton.InferInput("image", [1, 3, 8, 8], "FP32")
    floats.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))
    cases = [
        (refused(servers.normal, encoded(PNG), "nope"), "404", "Request for unknown model: 'nope' is not found"),
        (refused(servers.normal, encoded(PNG), model_version="7"), "404", "version '7'"),
        (refused(servers.normal, floats, NAME + "-tensor"), "400", f"BYTES to {NAME}, or pixels"),
        (refused(servers.normal, encoded(b"junk")), "415", "not an image"),
        (refused(servers.normal, encoded(PNG, b"junk")), "415", "image 1: "),
        (refused(servers.normal, encoded(bytes(MAX_BODY))), "413", "VIM_MAX_BODY_BYTES"),
        (refused(servers.normal, encoded(*[PNG] * 5)), "413", "VIM_MAX_IMAGES"),
        (refused(servers.normal, encoded(PNG), timeout=1), "504", "time"),
        (refused(servers.starting, encoded(PNG)), "503", "being loaded"),
    ]

    for error, status, says in cases:
        assert status == error.status()
        assert says in error.message()


def test_models_are_listed_reloaded_and_unloaded(servers: Servers) -> None:
    """The calls for Triton's model repository work with a key of an administrator, and fail without one."""
    good, key = client(servers.normal), {"Authorization": f"Bearer {ADMIN}"}
    ready = {"name": NAME, "version": "1", "state": "READY", "reason": ""}
    assert "model_repository" in good.get_server_metadata()["extensions"]

    assert [ready] == good.get_model_repository_index(headers=key)
    good.load_model(NAME, headers=key)
    good.unload_model(NAME, headers=key)
    assert not good.is_model_ready(NAME)
    assert "404" == refused(servers.normal, encoded(PNG)).status()
    good.load_model(NAME, headers=key, config='{"version_policy": {"specific": {"versions": [1]}}}')
    assert [ready] == good.get_model_repository_index(headers=key)

    refusals = [
        (partial(good.load_model, NAME), "401", "VIM_ADMIN_KEYS"),
        (partial(good.load_model, "nope", headers=key), "404", "'nope' does not exist"),
        (partial(good.unload_model, "nope", headers=key), "404", "'nope' is not loaded"),
    ]
    for call, status, says in refusals:
        with pytest.raises(triton.InferenceServerException, match=says) as caught:
            call()
        assert status == caught.value.status()


def test_a_full_queue(servers: Servers) -> None:
    """A full queue gives 429 with the name of the setting; this client does not retry."""
    with servers.held_full() as hold:
        error = refused(servers.full, encoded(PNG))
        assert 1 == hold.refused

    assert "429" == error.status()
    assert "VIM_QUEUE_IMAGES" in error.message()
