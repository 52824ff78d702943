"""The JavaScript clients of OpenAI and Hugging Face, each call in a Node process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients import native
from tests.clients.pictures import data_uri, picture
from tests.clients.servers import MAX_BODY, NAME, Servers

HERE = Path(__file__).parent / "node"
NODE = os.environ.get("CLIENTS_NODE", "")  # a folder with node_modules
pytestmark = pytest.mark.skipif(not NODE, reason="make test-clients installs the JavaScript clients")

PNG = picture()
URI = data_uri(PNG)


def run(script: str, *arguments: str) -> Any:
    """What a script prints. Node looks for modules beside the script, so it is copied there."""
    place = Path(NODE) / script
    place.write_text((HERE / script).read_text())
    done = subprocess.run(["node", str(place), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


def openai(url: str, given: Any, retries: int = 0, **more: Any) -> Any:
    """The answer of one embeddings request by OpenAI's client."""
    return run("openai.mjs", url, json.dumps({"model": NAME, "input": given} | more), str(retries))


def huggingface(url: str, path: Path, **parameters: Any) -> Any:
    """The answer of one image classification by Hugging Face's client."""
    return run("huggingface.mjs", url, str(path), json.dumps(parameters))


@pytest.mark.parametrize("more", [{}, {"encoding_format": "float"}])
def test_openai_embeddings(servers: Servers, more: dict[str, Any]) -> None:
    """The client asks for base64 by default and decodes it."""
    found = openai(servers.normal, [URI, data_uri(picture(1))], **more)

    assert native.embedding(servers.normal, PNG) == pytest.approx(found["vectors"][0], abs=native.TOLERANCE)
    assert native.embedding(servers.normal, picture(1)) == pytest.approx(found["vectors"][1], abs=native.TOLERANCE)
    assert [NAME] == found["models"]


def test_openai_errors(servers: Servers) -> None:
    """The client raises its own class for each status, with the service's code and message."""
    cases = [
        (openai(servers.normal, URI, model="nope"), "NotFoundError", 404, "model_not_found"),
        (openai(servers.normal, "a cat"), "BadRequestError", 400, "unsupported_input"),
        (openai(servers.normal, [[1, 2]]), "UnprocessableEntityError", 422, "invalid_options"),
        (openai(servers.normal, data_uri(PNG[:200])), "APIError", 415, "unsupported_image"),
        (openai(servers.normal, [URI] * 5), "APIError", 413, "too_many_images"),
        (openai(servers.starting, URI), "InternalServerError", 503, "not_ready"),
    ]
    for found, kind, status, code in cases:
        assert (kind, status, code) == (found["kind"], found["status"], found["code"])


def test_openai_retries(servers: Servers) -> None:
    """The client retries until there is room; without retries the caller sees the 429."""
    with servers.held_full() as hold:
        refused = openai(servers.full, URI)
        waiting = hold.release_after_a_refusal()
        found = openai(servers.full, URI, retries=5)
        waiting.join()

    assert ("RateLimitError", 429, "queue_full") == (refused["kind"], refused["status"], refused["code"])
    assert native.embedding(servers.full, PNG) == pytest.approx(found["vectors"][0], abs=native.TOLERANCE)


def test_huggingface_classification(servers: Servers, tmp_path: Path) -> None:
    """A Blob is classified; the client drops parameters, but keeps those in the URL."""
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    expected = native.classes(servers.normal, PNG)
    plain = huggingface(servers.normal, path, top_k=2)["answer"]
    asked = huggingface(servers.normal + "/?top_k=2", path)["answer"]

    assert [label for label, _ in expected] == [one["label"] for one in plain]
    assert [score for _, score in expected] == pytest.approx([one["score"] for one in plain], abs=native.TOLERANCE)
    assert [label for label, _ in expected[:2]] == [one["label"] for one in asked]


def test_huggingface_errors(servers: Servers, tmp_path: Path) -> None:
    """The client's error has the status and the service's message."""
    path, large = tmp_path / "picture.png", tmp_path / "large.png"
    path.write_bytes(PNG)
    large.write_bytes(PNG + bytes(MAX_BODY))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(PNG[:200])
    cases = [
        (huggingface(servers.normal, damaged), 415, "accepted formats"),
        (huggingface(servers.normal, large), 413, "VIM_MAX_BODY_BYTES"),
        (huggingface(servers.normal + "/?top_k=0", path), 422, "top_k"),
        (huggingface(servers.starting, path), 503, "being loaded"),
    ]
    with servers.held_full():
        cases.append((huggingface(servers.full, path), 429, "VIM_QUEUE_IMAGES"))

    for found, status, says in cases:
        assert status == found["status"], found
        assert says in json.dumps(found)
