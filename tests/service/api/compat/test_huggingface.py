"""Hugging Face's image classification, with the requests of its two clients."""

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
    """The labels and scores of the native endpoint."""
    answer = await client.post("/v1/classify", content=PHOTO, params={"top_k": k})
    return [(one["label"], one["score"]) for one in answer.json()["results"][0]["predictions"]]


def flat(answer: httpx.Response) -> list[tuple[str, float]]:
    """The labels and scores of a Hugging Face answer."""
    assert 200 == answer.status_code, answer.text
    return [(one["label"], one["score"]) for one in answer.json()]


async def close(client: httpx.AsyncClient, answer: httpx.Response, k: int) -> None:
    """Assert that an answer has the labels and scores of the native endpoint."""
    expected, found = await native(client, k), flat(answer)
    assert [label for label, _ in expected] == [label for label, _ in found]
    assert [score for _, score in expected] == pytest.approx([score for _, score in found], abs=1e-6)


@pytest.mark.parametrize("path", ["/", "/predict"])
@pytest.mark.parametrize("content_type", [None, "image/jpeg", "image/png", "application/json"])
async def test_raw_bytes_whatever_the_content_type(
    client: httpx.AsyncClient, path: str, content_type: str | None
) -> None:
    """Raw image bytes are classified with any Content-Type and without one, as InferenceClient sends them."""
    headers = {"Content-Type": content_type} if content_type else {}
    await close(client, await client.post(path, content=PHOTO, headers=headers), 5)


async def test_json_with_parameters(client: httpx.AsyncClient) -> None:
    """JSON with base64 and parameters is accepted; InferenceClient sends it when there are parameters."""
    body = {"inputs": TEXT, "parameters": {"top_k": 3, "function_to_apply": "softmax"}}
    await close(client, await client.post("/", json=body), 3)
    await close(client, await client.post("/", json={"inputs": TEXT, "parameters": None}), 5)


async def test_parameters_in_the_query(client: httpx.AsyncClient) -> None:
    """Parameters are accepted in the query, because the JavaScript client does not send them in the body."""
    await close(client, await client.post("/?top_k=2&function_to_apply=softmax", content=PHOTO), 2)


async def test_a_list_gives_a_list_of_lists(client: httpx.AsyncClient) -> None:
    """A list of images gets a list of results for each image, as from Hugging Face's own servers."""
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
    """The `error` of every error is a string, because huggingface_hub shows nothing else."""
    answer = await client.post("/", json=body)

    assert status == answer.status_code
    assert says in answer.json()["error"]


async def test_text_is_no_image(client: httpx.AsyncClient) -> None:
    """A text body is refused with 415, and the error says that it is not an image."""
    answer = await client.post("/", content=b"I like you")

    assert 415 == answer.status_code
    assert "not an image" in answer.json()["error"]


async def counted(client: httpx.AsyncClient) -> float:
    """The number of requests of this contract so far."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('vim_requests_total{api="huggingface"'))


async def test_the_page_at_the_same_path_is_not_counted(client: httpx.AsyncClient) -> None:
    """GET / is not counted as a Hugging Face request; POST / is."""
    before = await counted(client)
    await client.get("/")
    await client.post("/", content=PHOTO)

    assert 1 == await counted(client) - before


async def test_a_multi_label_model_has_sigmoid_scores(tmp_path: Path) -> None:
    """Its scores are independent of one another, and the client may name the function."""
    app = create_app(settings_for(write_tiny_model(tmp_path / "labels", scores="sigmoid")))
    async with running(app) as client:
        found = (await client.post("/", json={"inputs": TEXT, "parameters": {"function_to_apply": "sigmoid"}})).json()
        refused = await client.post("/", json={"inputs": TEXT, "parameters": {"function_to_apply": "softmax"}})
        info = (await client.get("/info")).json()

    assert abs(sum(one["score"] for one in found) - 1) > 0.1
    assert (400, True) == (refused.status_code, "scores are sigmoid" in refused.text)
    assert "sigmoid" == info["model"]["scores"]


async def test_a_model_without_a_head_is_404(tmp_path: Path) -> None:
    """Without a classifier head the request is refused with 404 no_classifier, as by the native endpoint."""
    app = create_app(settings_for(write_tiny_model(tmp_path / "headless", num_classes=0)))
    async with running(app) as client:
        answer = await client.post("/", content=PHOTO)

    assert (404, "no_classifier") == (answer.status_code, answer.json()["code"])
