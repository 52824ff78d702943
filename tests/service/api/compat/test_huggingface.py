"""Hugging Face's image classification, as its two clients send it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from tests.service.conftest import running, settings_for
from tests.tiny import photo, write_tiny_model

pytestmark = pytest.mark.anyio

PHOTO = photo(1)
TEXT = base64.b64encode(PHOTO).decode()


async def native(client: httpx.AsyncClient, k: int) -> list[tuple[str, float]]:
    """Labels and scores by the native endpoint."""
    answer = await client.post("/v1/classify", content=PHOTO, params={"top_k": k})
    return [(one["label"], one["score"]) for one in answer.json()["results"][0]["predictions"]]


def flat(answer: httpx.Response) -> list[tuple[str, float]]:
    """The same of an answer."""
    assert 200 == answer.status_code, answer.text
    return [(one["label"], one["score"]) for one in answer.json()]


async def close(client: httpx.AsyncClient, answer: httpx.Response, k: int) -> None:
    """Both agree."""
    expected, found = await native(client, k), flat(answer)
    assert [label for label, _ in expected] == [label for label, _ in found]
    assert [score for _, score in expected] == pytest.approx([score for _, score in found], abs=1e-6)


@pytest.mark.parametrize("path", ["/", "/predict"])
@pytest.mark.parametrize("content_type", [None, "image/jpeg", "image/png", "application/json"])
async def test_raw_bytes_whatever_the_content_type(
    client: httpx.AsyncClient, path: str, content_type: str | None
) -> None:
    """InferenceClient sends none for bytes, and posts to the bare URL."""
    headers = {"Content-Type": content_type} if content_type else {}
    await close(client, await client.post(path, content=PHOTO, headers=headers), 5)


async def test_json_with_parameters(client: httpx.AsyncClient) -> None:
    """What InferenceClient sends as soon as there is a parameter."""
    body = {"inputs": TEXT, "parameters": {"top_k": 3, "function_to_apply": "softmax"}}
    await close(client, await client.post("/", json=body), 3)
    await close(client, await client.post("/", json={"inputs": TEXT, "parameters": None}), 5)


async def test_parameters_in_the_query(client: httpx.AsyncClient) -> None:
    """JavaScript's client drops them from the body."""
    await close(client, await client.post("/?top_k=2&function_to_apply=softmax", content=PHOTO), 2)


async def test_a_list_gives_a_list_of_lists(client: httpx.AsyncClient) -> None:
    """As the pipeline behind Hugging Face's own servers."""
    answer = await client.post("/", json={"inputs": [TEXT, TEXT], "parameters": {"top_k": 1}})
    expected = await native(client, 1)

    assert [[label for label, _ in expected]] * 2 == [[one["label"] for one in best] for best in answer.json()]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"inputs": TEXT, "parameters": {"function_to_apply": "sigmoid"}}, 400, "scores are softmax"),
        ({"inputs": TEXT, "parameters": {"function_to_apply": "relu"}}, 422, "function_to_apply"),
        ({"inputs": TEXT, "parameters": {"top_k": 0}}, 422, "top_k"),
        ({"inputs": TEXT, "parameters": {"candidate_labels": ["cat"]}}, 422, "candidate_labels: unknown option"),
        ({"inputs": TEXT, "parameters": 3}, 400, "inputs"),
        ({"inputs": "https://example.org/cat.jpg"}, 400, "URLs are not fetched"),
        ({"inputs": "a cat!"}, 400, "not base64"),
        ({"inputs": "AAAA"}, 415, "not an image"),
        ({"images": [TEXT]}, 400, '{"inputs": base64'),
        ({"inputs": []}, 400, "no image"),
        ({"inputs": [TEXT] * 65}, 413, "VIM_MAX_IMAGES"),
    ],
)
async def test_errors_are_strings(client: httpx.AsyncClient, body: Any, status: int, says: str) -> None:
    """huggingface_hub shows `error`, and loses anything else."""
    answer = await client.post("/", json=body)

    assert status == answer.status_code
    assert says in answer.json()["error"]


async def test_text_is_no_image(client: httpx.AsyncClient) -> None:
    """415, with what to send."""
    answer = await client.post("/", content=b"I like you")

    assert 415 == answer.status_code
    assert "no image" in answer.json()["error"]


async def counted(client: httpx.AsyncClient) -> float:
    """Requests of this contract so far."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('vim_requests_total{api="huggingface"'))


async def test_the_page_at_the_same_path_is_not_counted(client: httpx.AsyncClient) -> None:
    """GET / is for people; POST / is counted under its contract."""
    before = await counted(client)
    await client.get("/")
    await client.post("/", content=PHOTO)

    assert 1 == await counted(client) - before


async def test_a_model_without_a_head_is_404(tmp_path: Path) -> None:
    """As for the native endpoint."""
    app = create_app(settings_for(write_tiny_model(tmp_path / "headless", num_classes=0)))
    async with running(app) as client:
        answer = await client.post("/", content=PHOTO)

    assert (404, "no_classifier") == (answer.status_code, answer.json()["code"])
