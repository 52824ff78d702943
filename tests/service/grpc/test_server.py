"""The gRPC server: health, reflection, keys, deadlines, cancellation, several processes, and the end."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.e2e import http2
from tests.e2e.faults import GO, WAIT, plain
from tests.e2e.server import Server, free_port, serving
from tests.service.grpc.conftest import Served
from tests.service.grpc.test_servicer import PHOTOS, encoded

LIVE = "/inference.GRPCInferenceService/ServerLive"
KEY = "user-key-of-the-test"


def status(error: Any) -> str:
    """The name of the status of Triton's exception."""
    return str(error.value.status()).removeprefix("StatusCode.")


def test_health_and_reflection(served: Served) -> None:
    """The standard health service knows the server and its models; reflection lists the services."""
    with grpc.insecure_channel(served.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "tiny"):
            assert "SERVING" == _state(health.Check(health_pb2.HealthCheckRequest(service=name)))
        with pytest.raises(grpc.RpcError) as refused:
            health.Check(health_pb2.HealthCheckRequest(service="nope"))
        watching = health.Watch(health_pb2.HealthCheckRequest(service="nope"))
        assert "SERVICE_UNKNOWN" == _state(next(watching))
        watching.cancel()
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    error: Any = refused.value

    assert grpc.StatusCode.NOT_FOUND == error.code()
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)


def _state(answer: Any) -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_keys(tmp_path: Path, tiny_model: Path) -> None:
    """With API keys every call but the probes needs one, as metadata in either form, before its message arrives."""
    port = free_port()
    with (
        serving(tmp_path, model=tiny_model, grpc_port=port, api_keys=KEY) as _,
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers in ({}, {"x-api-key": "another-key-of-the-test"}, {"authorization": KEY}):
            with pytest.raises(triton.InferenceServerException) as refused:
                client.infer("tiny", [encoded(PHOTOS[0])], headers=headers)
            assert "UNAUTHENTICATED" == status(refused)
        with pytest.raises(triton.InferenceServerException) as refused:
            client.get_model_metadata("tiny")
        assert "UNAUTHENTICATED" == status(refused)
        for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
            assert client.infer("tiny", [encoded(PHOTOS[0])], headers=headers).as_numpy("scores") is not None
        with http2.Client(f"127.0.0.1:{port}") as raw:
            raw.call()  # without a message, which is never awaited
            assert http2.HEADERS in (kind for kind, _ in raw.frames())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert "SERVING" == _state(health.Check(health_pb2.HealthCheckRequest()))
            with pytest.raises(grpc.RpcError) as unknown:
                health.Check(health_pb2.HealthCheckRequest(service="tiny"))
    error: Any = unknown.value

    assert grpc.StatusCode.UNAUTHENTICATED == error.code()


def test_deadlines_and_cancellation_free_the_queue(tmp_path: Path, tiny_model: Path) -> None:
    """A call that is cancelled, or whose deadline passes, leaves the queue; the next call is served."""
    port, go = free_port(), tmp_path / "go"
    with (
        serving(tmp_path, model=tiny_model, grpc_port=port, faults={GO: go}, queue_images=4, max_batch=1) as server,
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        started: list[Any] = [client.async_infer("tiny", [encoded(plain(WAIT))], lambda *_: None) for _ in range(2)]
        server.wait_for(lambda: server.info()["queue"]["images"] >= 1)
        with pytest.raises(triton.InferenceServerException) as late:
            client.infer("tiny", [encoded(PHOTOS[0])], client_timeout=0.3)
        for one in started:
            one.cancel()
        server.wait_for(lambda: server.info()["queue"]["images"] <= 1)  # the device still works on one

        go.touch()
        assert "DEADLINE_EXCEEDED" == status(late)
        assert client.infer("tiny", [encoded(PHOTOS[0])]).as_numpy("scores") is not None


def test_a_full_queue_says_when_to_come_back(tmp_path: Path, tiny_model: Path) -> None:
    """A call that finds the queue full is RESOURCE_EXHAUSTED, with retry-after in the trailing metadata."""
    port, go = free_port(), tmp_path / "go"
    with (
        serving(tmp_path, model=tiny_model, grpc_port=port, faults={GO: go}, queue_images=1, max_images=1) as server,
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        waiting = client.async_infer("tiny", [encoded(plain(WAIT))], lambda *_: None)
        server.wait_for(lambda: server.info()["queue"]["images"] == 1)
        with pytest.raises(triton.InferenceServerException) as refused:
            client.infer("tiny", [encoded(PHOTOS[0])])
        waiting.cancel()
        go.touch()

        assert "RESOURCE_EXHAUSTED" == status(refused)


def test_several_http_processes_share_the_port_and_drain(tmp_path: Path, tiny_model: Path) -> None:
    """With two HTTP processes both answer calls. After SIGTERM running calls are answered, and the exit status is 0."""
    port, go = free_port(), tmp_path / "go"
    answers: list[Any] = []
    with serving(tmp_path, model=tiny_model, grpc_port=port, http_workers=2, faults={GO: go}) as server:
        for _ in range(40):  # the kernel chooses a process for each connection
            with triton.InferenceServerClient(
                f"127.0.0.1:{port}", channel_args=[("grpc.use_local_subchannel_pool", 1)]
            ) as one:
                one.infer("tiny", [encoded(PHOTOS[0])])
        seen = set(re.findall(r'"process": "(http-\d)", "request_id"', server.log))

        def ask() -> None:
            with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
                answers.append(client.infer("tiny", [encoded(plain(WAIT))]).as_numpy("scores"))

        thread = threading.Thread(target=ask)
        thread.start()
        server.wait_for(lambda: server.info()["queue"]["images"] == 1)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:  # an open stream does not delay the end
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert "SERVING" == _state(next(watching))
            server.signal(signal.SIGTERM)
            server.wait_for(lambda: "draining" in server.log)
            go.touch()
            thread.join()
            assert 0 == server.exit_status(20)  # less than the 25 s of VIM_DRAIN_TIMEOUT_MS

    assert (1, 7) == answers[0].shape
    assert 2 == len(seen)


def test_a_message_that_arrives_during_the_drain_is_answered(tmp_path: Path, tiny_model: Path) -> None:
    """A call that was accepted before SIGTERM is answered, although the rest of its message arrives later."""
    port, message = free_port(), http2.infer_message(PHOTOS[0])
    with (
        serving(tmp_path, model=tiny_model, grpc_port=port) as server,
        http2.Client(f"127.0.0.1:{port}") as client,
    ):
        stream = client.call()
        client.data(stream, message[:100])
        client.data(client.call(LIVE), http2.message(b""), http2.END_STREAM)
        answers = (kind for kind, _ in client.frames() if kind == http2.DATA)
        assert next(answers, None) is not None  # of the second call, so the first one has been accepted
        server.signal(signal.SIGTERM)
        server.wait_for(lambda: "draining" in server.log)
        time.sleep(0.5)
        client.data(stream, message[100:], http2.END_STREAM)
        assert next(answers, None) is not None
        assert 0 == server.exit_status()


def test_a_taken_port_ends_the_start(tmp_path: Path, tiny_model: Path, served: Served) -> None:
    """A port on which another program listens is an error that names the setting, before anything is loaded."""
    taken = int(served.address.split(":")[1])
    server = Server(tmp_path / "server.log", model=tiny_model, grpc_port=taken)

    assert 0 != server.exit_status()
    assert "VIM_GRPC_PORT" in server.log


def test_the_port_is_closed_by_default(served: Served, tmp_path: Path, tiny_model: Path) -> None:
    """Without VIM_GRPC_PORT the packages of gRPC are not even imported."""
    with serving(tmp_path, model=tiny_model) as server:
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert 200 == httpx.get(f"{server.url}/readyz").status_code
    assert "cygrpc" not in maps
