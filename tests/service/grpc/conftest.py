"""A real server with gRPC, and clients of both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as triton

from model.heads.head import Head
from tests.e2e.server import Server, free_port, serving
from tests.tiny import write_tiny_model

ADMIN = "admin-key-of-the-test"


class Served(NamedTuple):
    """A server, the address of its gRPC port, and a client."""

    server: Server
    address: str
    client: Any


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one model, `tiny`, with two versions, of which the second is served."""
    folder = tmp_path_factory.mktemp("repository")
    for version in ("1", "2"):
        write_tiny_model(folder / "tiny" / version, seed=int(version))
    return folder


@pytest.fixture(scope="session")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a head `mine`, an administrator, and models that can be loaded."""
    directory, port = tmp_path_factory.mktemp("grpc"), free_port()
    settings: dict[str, Any] = {"model_repository": repository, "model_control": "explicit", "admin_keys": ADMIN}
    with serving(
        directory, grpc_port=port, heads_dir=directory / "heads", max_body_bytes=1 << 20, **settings
    ) as server:
        weight = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
        head = Head(weight, np.zeros(2, np.float32), ("cat", "dog"), server.info()["model"]["fingerprint"])
        (directory / "heads").mkdir()
        (directory / "heads" / "mine.safetensors").write_bytes(head.to_bytes())
        address = f"127.0.0.1:{port}"
        client = triton.InferenceServerClient(address)
        yield Served(server, address, client)
        client.close()
