"""Triton's client over gRPC: every call answers as over HTTP, and every error is the error of its kind."""

from __future__ import annotations

import asyncio
import base64
import queue
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.service.grpc.conftest import ADMIN, Served
from tests.tiny import photo

PHOTOS = [photo(seed) for seed in range(3)]
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
OUTPUTS = ("scores", "embedding", "labels")


def encoded(*images: bytes) -> Any:
    """The input of encoded images."""
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[one] for one in images], dtype=object))
    return tensor


def pixels() -> Any:
    """The input of pixels."""
    tensor = triton.InferInput("image", list(PIXELS.shape), "UINT8")
    tensor.set_data_from_numpy(PIXELS)
    return tensor


def over_http(served: Served, model: str) -> dict[str, np.ndarray]:
    """The outputs of the same request over HTTP, as JSON."""
    if "tensor" in model:
        tensor: dict[str, Any] = {"shape": PIXELS.shape, "datatype": "UINT8", "data": PIXELS.ravel().tolist()}
    else:
        data = [base64.b64encode(one).decode() for one in PHOTOS]
        tensor = {"shape": [len(PHOTOS), 1], "datatype": "BYTES", "data": data}
    answer = httpx.post(f"{served.server.url}/v2/models/{model}/infer", json={"inputs": [{"name": "image"} | tensor]})
    return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer.json()["outputs"]}


@pytest.mark.parametrize("model", ["tiny", "tiny-tensor", "tiny~mine", "tiny-tensor~mine"])
def test_answers_are_those_of_http(served: Served, model: str) -> None:
    """All outputs of every name of a model are equal to those over HTTP, within 1e-6."""
    tensor = pixels() if "tensor" in model else encoded(*PHOTOS)
    answer = served.client.infer(model, [tensor], request_id="r7")
    wanted = over_http(served, model)

    assert ("r7", model, "2") == (
        answer.get_response().id,
        answer.get_response().model_name,
        answer.get_response().model_version,
    )
    np.testing.assert_allclose(answer.as_numpy("scores"), wanted["scores"], atol=1e-6)
    np.testing.assert_allclose(answer.as_numpy("embedding"), wanted["embedding"], atol=1e-6)
    assert wanted["labels"].ravel().tolist() == [label.decode() for label in answer.as_numpy("labels").ravel()]


def test_requested_outputs_and_classification(served: Served) -> None:
    """Only the requested outputs are sent; `class_count` gives the best classes as texts."""
    outputs = [triton.InferRequestedOutput("scores", class_count=2)]
    answer = served.client.infer("tiny", [encoded(PHOTOS[0])], outputs=outputs)
    best = np.argsort(-over_http(served, "tiny")["scores"][0])[:2]

    assert ["scores"] == [one.name for one in answer.get_response().outputs]
    assert best.tolist() == [int(text.decode().split(":")[1]) for text in answer.as_numpy("scores").ravel()]
    assert served.client.infer("tiny", [encoded(PHOTOS[0])], model_version="2").as_numpy("scores").shape == (1, 7)


@pytest.mark.parametrize("kind", ["bytes_contents", "uint_contents"])
def test_contents_instead_of_raw_tensors(served: Served, kind: str) -> None:
    """KServe's clients send the contents of a tensor as fields of the message."""
    request = service_pb2.ModelInferRequest(model_name="tiny" if kind == "bytes_contents" else "tiny-tensor")
    if kind == "bytes_contents":
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[3, 1])
        tensor.contents.bytes_contents.extend(PHOTOS)
    else:
        tensor = request.inputs.add(name="image", datatype="UINT8", shape=PIXELS.shape)
        tensor.contents.uint_contents.extend(PIXELS.ravel().tolist())
    with grpc.insecure_channel(served.address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(request)
    scores = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)

    np.testing.assert_allclose(scores, over_http(served, request.model_name)["scores"], atol=1e-6)


def test_metadata_config_and_statistics(served: Served) -> None:
    """Metadata, configuration and statistics are those of HTTP."""
    client, url = served.client, served.server.url
    metadata, config = client.get_model_metadata("tiny"), client.get_model_config("tiny-tensor").config
    wanted = httpx.get(f"{url}/v2/models/tiny").json()
    before = client.get_inference_statistics("tiny").model_stats[0]
    client.infer("tiny", [encoded(*PHOTOS)])
    after = client.get_inference_statistics("tiny").model_stats[0]

    assert (True, True, True) == (client.is_server_live(), client.is_server_ready(), client.is_model_ready("tiny"))
    assert "statistics" in client.get_server_metadata().extensions
    assert wanted["versions"] == list(metadata.versions)
    assert [list(one["shape"]) for one in wanted["outputs"]] == [list(one.shape) for one in metadata.outputs]
    assert ("tiny-tensor", "TYPE_UINT8", 64) == (
        config.name,
        config.DESCRIPTOR.fields_by_name["input"]
        .message_type.fields_by_name["data_type"]
        .enum_type.values_by_number[config.input[0].data_type]
        .name,
        config.max_batch_size,
    )
    assert (3, 1) == (
        after.inference_count - before.inference_count,
        after.inference_stats.success.count - before.inference_stats.success.count,
    )
    assert 2 <= len(client.get_inference_statistics().model_stats)


def test_models_are_listed_unloaded_and_loaded(served: Served) -> None:
    """The repository calls need a key of an administrator, in either form of metadata."""
    client, headers = served.client, {"authorization": f"Bearer {ADMIN}"}
    index = client.get_model_repository_index(headers=headers).models

    assert {("1", "UNAVAILABLE"), ("2", "READY")} == {(one.version, one.state) for one in index}
    client.load_model("tiny", headers={"x-api-key": ADMIN})
    assert client.is_model_ready("tiny")
    with pytest.raises(triton.InferenceServerException) as refused:
        client.unload_model("tiny")
    assert "StatusCode.UNAUTHENTICATED" == refused.value.status()


@pytest.mark.parametrize(
    ("model", "tensor", "status", "said"),
    [
        ("nope", encoded(PHOTOS[0]), "NOT_FOUND", "'nope' is not found"),
        ("tiny~nope", encoded(PHOTOS[0]), "NOT_FOUND", "there is no head 'nope'"),
        ("tiny", encoded(b"no image"), "INVALID_ARGUMENT", "not an image"),
        ("tiny", pixels(), "INVALID_ARGUMENT", "takes BYTES, not UINT8"),
        ("tiny", encoded(bytes(2 << 20)), "RESOURCE_EXHAUSTED", "larger than max"),
        ("tiny", encoded(*[PHOTOS[0]] * 65), "INVALID_ARGUMENT", "65"),
    ],
)
def test_errors_have_the_status_of_their_kind(served: Served, model: str, tensor: Any, status: str, said: str) -> None:
    """Each error has its status and a text that says what is wrong, and the connection serves the next call."""
    with pytest.raises(triton.InferenceServerException) as refused:
        served.client.infer(model, [tensor])

    assert f"StatusCode.{status}" == refused.value.status()
    assert said in refused.value.message()
    assert served.client.infer("tiny", [encoded(PHOTOS[0])]).as_numpy("labels") is not None


def test_errors_have_details_as_trailing_metadata(served: Served) -> None:
    """The code of the error, and the id of the request, are in the trailing metadata."""
    request = service_pb2.ModelInferRequest(model_name="nope")
    with grpc.insecure_channel(served.address) as channel, pytest.raises(grpc.RpcError) as refused:
        GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=[("x-request-id", "abc")])
    error: Any = refused.value
    trailing = dict(error.trailing_metadata())

    assert ("model_not_found", "abc") == (trailing["error-code"], trailing["x-request-id"])


def test_shared_memory_and_settings_are_not_supported(served: Served) -> None:
    """Calls that the server does not have say so in words."""
    for call in ("get_system_shared_memory_status", "get_cuda_shared_memory_status", "get_log_settings"):
        with pytest.raises(triton.InferenceServerException) as refused:
            getattr(served.client, call)()
        assert "StatusCode.UNIMPLEMENTED" == refused.value.status()
        assert "not supported" in refused.value.message()


@pytest.mark.parametrize("contents", ["both", "too few", "large"])
def test_malformed_messages(served: Served, contents: str) -> None:
    """Messages whose parts do not fit together are INVALID_ARGUMENT."""
    request = service_pb2.ModelInferRequest(model_name="tiny-tensor" if contents == "large" else "tiny")
    tensor = request.inputs.add(name="image", datatype="UINT8" if contents == "large" else "BYTES", shape=[1, 1])
    if contents == "large":
        tensor.contents.uint_contents.append(256)
    if contents == "both":
        tensor.contents.bytes_contents.append(PHOTOS[0])
    request.raw_input_contents.extend([] if contents == "large" else [b"", b""] if contents == "too few" else [b""])
    with grpc.insecure_channel(served.address) as channel, pytest.raises(grpc.RpcError) as refused:
        GRPCInferenceServiceStub(channel).ModelInfer(request)
    error: Any = refused.value

    assert grpc.StatusCode.INVALID_ARGUMENT == error.code()


def test_a_stream_answers_each_request_with_its_id(served: Served) -> None:
    """Many requests on one stream are answered as they finish; an error ends only its own request."""
    found: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(served.address) as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        for number in range(60):
            model, tensor = "nope" if number == 30 else "tiny", encoded(PHOTOS[number % 3])
            client.async_stream_infer(model, [tensor], request_id=str(number))
        answers = [found.get(timeout=60) for _ in range(60)]
        client.stop_stream()
    labels = over_http(served, "tiny")["labels"].ravel()
    good = {int(one.get_response().id): one.as_numpy("labels")[0, 0].decode() for one, error in answers if not error}

    assert {number: labels[number % 3] for number in range(60) if number != 30} == good
    (error,) = (error for _, error in answers if error)
    assert "NOT_FOUND" in str(error)


async def _asynchronous(address: str) -> list[Any]:
    async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
        calls = [client.infer("tiny", [encoded(PHOTOS[number % 3])]) for number in range(12)]
        return [answer.as_numpy("scores") for answer in await asyncio.gather(*calls)]


def test_the_asynchronous_client(served: Served) -> None:
    """Calls at the same time on one channel get their own answers."""
    wanted = over_http(served, "tiny")["scores"]
    for number, scores in enumerate(asyncio.run(_asynchronous(served.address))):
        np.testing.assert_allclose(scores[0], wanted[number % 3], atol=1e-6)


def test_calls_are_counted_by_their_api(served: Served) -> None:
    """The metrics of requests have the label api="grpc"."""
    served.client.infer("tiny", [encoded(PHOTOS[0])])
    page = httpx.get(f"{served.server.url}/metrics").text

    assert 'vim_requests_total{api="grpc",code="200",model="tiny",op="classify"}' in page
