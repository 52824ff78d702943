"""NVIDIA's tritonclient over gRPC: synchronous, asynchronous, and streams."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients import native
from tests.clients.opened import opened
from tests.clients.pictures import HEIGHT, WIDTH, picture, pixels
from tests.clients.servers import ADMIN, MAX_BODY, NAME, Servers

triton: Any = pytest.importorskip("tritonclient.grpc", reason="make test-clients installs tritonclient[grpc]")
aio: Any = pytest.importorskip("tritonclient.grpc.aio")
np: Any = pytest.importorskip("numpy")
pytestmark = pytest.mark.filterwarnings("ignore")

PNG = picture()
IMAGES = [picture(number) for number in range(12)]


def client(address: str) -> Any:
    """A synchronous client."""
    return opened(triton.InferenceServerClient(address))


def encoded(*images: bytes) -> Any:
    """The input of the model NAME with encoded images."""
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[one] for one in images], dtype=object))
    return tensor


def raw_pixels() -> Any:
    """The input of NAME-tensor with the pixels of PNG."""
    tensor = triton.InferInput("image", [1, HEIGHT, WIDTH, 3], "UINT8")
    tensor.set_data_from_numpy(np.frombuffer(pixels(), np.uint8).reshape(1, HEIGHT, WIDTH, 3))
    return tensor


def check(servers: Servers, image: bytes, found: Callable[[str], Any], row: int = 0) -> None:
    """Compare all outputs for an image with the answers over HTTP."""
    (best, score), *_ = native.classes(servers.normal, image, 7)
    np.testing.assert_allclose(
        found("embedding")[row], native.embedding(servers.normal, image), atol=native.TOLERANCE, rtol=0
    )
    label = found("labels")[row][0]
    assert best == (label if isinstance(label, str) else label.decode())
    assert score == pytest.approx(float(found("scores")[row].max()), abs=native.TOLERANCE)


def test_health_and_metadata(servers: Servers) -> None:
    """The client reads readiness and metadata of server and model, also before the model is loaded."""
    good, early = client(servers.grpc_normal), client(servers.grpc_starting)

    assert (True, True, True) == (good.is_server_live(), good.is_server_ready(), good.is_model_ready(NAME))
    assert (True, False, False) == (early.is_server_live(), early.is_server_ready(), early.is_model_ready(NAME))
    assert "statistics" in good.get_server_metadata().extensions
    assert "BYTES" == good.get_model_metadata(NAME, "1").inputs[0].datatype
    assert 7 == good.get_model_metadata(NAME).outputs[0].shape[1]
    assert 4 == good.get_model_config(NAME + "-tensor").config.max_batch_size
    assert NAME == good.get_inference_statistics(NAME).model_stats[0].name


def test_images_and_pixels(servers: Servers) -> None:
    """Several images in a request, and pixels, have the outputs that they have over HTTP."""
    good = client(servers.grpc_normal)
    result = good.infer(NAME, [encoded(PNG, IMAGES[1])], request_id="abc")

    assert "abc" == result.get_response().id
    check(servers, PNG, result.as_numpy, 0)
    check(servers, IMAGES[1], result.as_numpy, 1)
    check(servers, PNG, good.infer(NAME + "-tensor", [raw_pixels()]).as_numpy)


def test_classification(servers: Servers) -> None:
    """Classes have the form value:index:label, with the best one first."""
    output = triton.InferRequestedOutput("scores", class_count=3)
    found = client(servers.grpc_normal).infer(NAME, [encoded(PNG)], outputs=[output]).as_numpy("scores")

    assert [label for label, _ in native.classes(servers.normal, PNG, 3)] == [
        one.decode().split(":")[2] for one in found[0]
    ]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(servers: Servers, coding: str) -> None:
    """A compressed message is accepted."""
    check(servers, PNG, client(servers.grpc_normal).infer(NAME, [encoded(PNG)], compression_algorithm=coding).as_numpy)


def test_a_stream(servers: Servers) -> None:
    """Each request of a stream is answered with its id, also one with an error."""
    one, finished = client(servers.grpc_normal), queue.Queue[Any]()
    one.start_stream(lambda result, error: finished.put((result, error)))
    for number, image in enumerate([*IMAGES, b"junk"]):
        one.async_stream_infer(NAME, [encoded(image)], request_id=str(number))
    answers = [finished.get(timeout=60) for _ in range(len(IMAGES) + 1)]
    one.stop_stream()
    results = {int(result.get_response().id): result for result, error in answers if error is None}

    assert set(range(len(IMAGES))) == set(results)
    for number, result in results.items():
        check(servers, IMAGES[number], result.as_numpy)
    assert ["INVALID_ARGUMENT"] == [str(error).split(":")[0] for _, error in answers if error is not None]


def test_asyncio(servers: Servers) -> None:
    """The asynchronous client infers, streams, and sees errors."""

    async def requests() -> Any:
        for number, image in enumerate(IMAGES):
            yield {"model_name": NAME, "inputs": [encoded(image)], "request_id": str(number)}

    async def run() -> tuple[Any, list[Any], str]:
        async with aio.InferenceServerClient(servers.grpc_normal) as one:
            result = await one.infer(NAME, [encoded(PNG)])
            answers = [answer async for answer, _ in one.stream_infer(requests())]
            with pytest.raises(triton.InferenceServerException) as caught:
                await one.infer("nope", [encoded(PNG)])
            return result, answers, str(caught.value)

    result, answers, error = asyncio.run(run())

    check(servers, PNG, result.as_numpy)
    assert len(IMAGES) == len(answers)
    for answer in answers:
        check(servers, IMAGES[int(answer.get_response().id)], answer.as_numpy)
    assert "NOT_FOUND" in error
    assert "unknown model: 'nope'" in error


def test_models_are_reloaded_and_unloaded(servers: Servers) -> None:
    """The calls for Triton's model repository work with a key of an administrator, and fail without one."""
    good, key = client(servers.grpc_normal), {"authorization": f"Bearer {ADMIN}"}

    assert [(NAME, "READY")] == [(one.name, one.state) for one in good.get_model_repository_index(headers=key).models]
    good.unload_model(NAME, headers=key)
    assert "NOT_FOUND" == refused(servers.grpc_normal, encoded(PNG))[0]
    good.load_model(NAME, headers=key)
    check(servers, PNG, good.infer(NAME, [encoded(PNG)]).as_numpy)
    with pytest.raises(triton.InferenceServerException, match="VIM_ADMIN_KEYS") as caught:
        good.load_model(NAME)
    assert "StatusCode.UNAUTHENTICATED" == caught.value.status()


def refused(address: str, tensor: Any, model: str = NAME, **more: Any) -> tuple[str, str]:
    """The status and the text of the exception that a request ends with."""
    with pytest.raises(triton.InferenceServerException) as caught:
        client(address).infer(model, [tensor], **more)
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def test_errors(servers: Servers) -> None:
    """Each error has the status of its kind and the text that it has over HTTP."""
    floats = triton.InferInput("image", [1, 3, 8, 8], "FP32")
    floats.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))
    normal = servers.grpc_normal
    cases = [
        (refused(normal, encoded(PNG), "nope"), "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        (refused(normal, encoded(PNG), model_version="7"), "NOT_FOUND", "version '7'"),
        (refused(normal, floats, NAME + "-tensor"), "INVALID_ARGUMENT", f"BYTES to {NAME}, or pixels"),
        (refused(normal, encoded(b"junk")), "INVALID_ARGUMENT", "not an image"),
        (refused(normal, encoded(PNG, b"junk")), "INVALID_ARGUMENT", "image 1: "),
        (refused(normal, encoded(bytes(MAX_BODY))), "INVALID_ARGUMENT", "VIM_MAX_BODY_BYTES"),
        (refused(normal, encoded(bytes(2 * MAX_BODY))), "RESOURCE_EXHAUSTED", "larger than max"),
        (refused(normal, encoded(*[PNG] * 5)), "INVALID_ARGUMENT", "VIM_MAX_IMAGES"),
        (refused(normal, encoded(PNG), timeout=1), "DEADLINE_EXCEEDED", "time"),
        (refused(servers.grpc_starting, encoded(PNG)), "UNAVAILABLE", "being loaded"),
    ]

    for (status, text), expected, says in cases:
        assert expected == status, text
        assert says in text


def test_a_full_queue(servers: Servers) -> None:
    """A full queue gives RESOURCE_EXHAUSTED with the name of the setting; this client does not retry."""
    with servers.held_full() as hold:
        status, text = refused(servers.grpc_full, encoded(PNG))
        assert 1 == hold.refused

    assert "RESOURCE_EXHAUSTED" == status
    assert "VIM_QUEUE_IMAGES" in text
