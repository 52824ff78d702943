"""huggingface_hub's InferenceClient, with the URL of the server as the model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.clients import native
from tests.clients.pictures import picture
from tests.clients.servers import MAX_BODY, NAME, Servers

hub: Any = pytest.importorskip("huggingface_hub", reason="make test-clients installs huggingface_hub")
pytestmark = pytest.mark.filterwarnings("ignore")

PNG = picture()


def same(expected: list[tuple[str, float]], found: Any) -> bool:
    """Whether labels are equal and scores nearly equal."""
    labels, scores = zip(*((one.label, one.score) for one in found), strict=True)
    return labels == tuple(label for label, _ in expected) and scores == pytest.approx(
        [score for _, score in expected], abs=native.TOLERANCE
    )


def refused(url: str, image: bytes, **parameters: Any) -> str:
    """The text of the error that a request ends with."""
    with pytest.raises(Exception, match=r"\d\d\d") as caught:
        hub.InferenceClient(url).image_classification(image, **parameters)
    return str(caught.value)


def test_bytes_and_paths(servers: Servers, tmp_path: Path) -> None:
    """Raw bytes without a Content-Type, and files with one, are classified."""
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    client = hub.InferenceClient(servers.normal)
    expected = native.classes(servers.normal, PNG)

    assert same(expected, client.image_classification(PNG))
    assert same(expected, client.image_classification(str(path)))


def test_parameters_make_it_json(servers: Servers) -> None:
    """With parameters the client sends JSON with base64, which both paths answer; a token is ignored."""
    client = hub.InferenceClient(servers.normal + "/predict", token="hf_none")
    found = client.image_classification(PNG, top_k=2, function_to_apply="softmax")

    assert same(native.classes(servers.normal, PNG, 2), found)


def test_asyncio(servers: Servers) -> None:
    """AsyncInferenceClient gets the same answer."""

    async def run() -> Any:
        async with hub.AsyncInferenceClient(servers.normal) as client:
            return await client.image_classification(PNG, top_k=3)

    found = asyncio.run(run())

    assert same(native.classes(servers.normal, PNG, 3), found)


def test_health_and_info(servers: Servers) -> None:
    """The client's requests for health and information are answered."""
    client = hub.InferenceClient(servers.normal, provider="hf-inference")

    assert client.health_check()
    assert NAME == client.get_endpoint_info()["model"]["name"]
    assert not hub.InferenceClient(servers.starting, provider="hf-inference").health_check()


def test_errors(servers: Servers) -> None:
    """The client's error contains the service's message."""
    assert "accepted formats" in refused(servers.normal, PNG[:200])
    assert "VIM_MAX_BODY_BYTES" in refused(servers.normal, PNG + bytes(MAX_BODY))
    assert "top_k" in refused(servers.normal, PNG, top_k=0)
    assert "scores are softmax" in refused(servers.normal, PNG, function_to_apply="sigmoid")
    assert "being loaded" in refused(servers.starting, PNG)
    with servers.held_full():
        assert "VIM_QUEUE_IMAGES" in refused(servers.full, PNG)
