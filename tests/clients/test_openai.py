"""OpenAI's Python client: embeddings of images, models, and its own retries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.clients import native
from tests.clients.opened import opened
from tests.clients.pictures import data_uri, picture
from tests.clients.servers import MAX_BODY, NAME, Servers

openai: Any = pytest.importorskip("openai", reason="make test-clients installs openai")
pytestmark = pytest.mark.filterwarnings("ignore")

PNG = picture()
URI = data_uri(PNG)


def client(url: str, **more: Any) -> Any:
    """A client whose base URL ends in /v1."""
    return opened(openai.OpenAI(base_url=url + "/v1", api_key="none", **{"max_retries": 0, "timeout": 120} | more))


def refused(url: str, given: Any, **more: Any) -> Any:
    """The exception that a request ends with."""
    with pytest.raises(openai.APIStatusError) as caught:
        client(url).embeddings.create(**{"model": NAME, "input": given} | more)
    return caught.value


@pytest.mark.parametrize("more", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_embeddings(servers: Servers, more: dict[str, str]) -> None:
    """The client asks for base64 by default, and several images keep their order."""
    answer = client(servers.normal).embeddings.create(model=NAME, input=[URI, data_uri(picture(1))], **more)
    found = [one.embedding for one in answer.data]
    if more.get("encoding_format") == "base64":  # if it is requested explicitly, the client does not decode it
        import base64
        import struct

        found = [list(struct.unpack("<32f", base64.b64decode(one))) for one in found]

    assert native.embedding(servers.normal, PNG) == pytest.approx(found[0], abs=native.TOLERANCE)
    assert native.embedding(servers.normal, picture(1)) == pytest.approx(found[1], abs=native.TOLERANCE)
    assert (NAME, 2, 2) == (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens)


def test_objects_and_extra_members(servers: Servers) -> None:
    """Images as Jina and infinity write them are accepted from the same client."""
    expected = native.embedding(servers.normal, PNG)
    create = client(servers.normal).embeddings.create
    for given, extra in (([{"image": URI}], {}), (URI, {"modality": "image"})):
        found = create(model=NAME, input=given, extra_body=extra).data[0].embedding
        assert expected == pytest.approx(found, abs=native.TOLERANCE)


def test_asyncio(servers: Servers) -> None:
    """AsyncOpenAI gets the same embeddings."""

    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=servers.normal + "/v1", api_key="none") as one:
            return await one.embeddings.create(model=NAME, input=URI)

    found = asyncio.run(run()).data[0].embedding

    assert native.embedding(servers.normal, PNG) == pytest.approx(found, abs=native.TOLERANCE)


def test_models(servers: Servers) -> None:
    """The client reads the list of models and the one model."""
    models = client(servers.normal).models

    assert [NAME] == [one.id for one in models.list()]
    assert NAME == models.retrieve(NAME).id
    with pytest.raises(openai.NotFoundError):
        models.retrieve("gpt-5")


def test_errors(servers: Servers) -> None:
    """The client raises its own exception for each status, with message, code and request id."""
    large = data_uri(bytes(MAX_BODY))
    cases = [
        (refused(servers.normal, URI, model="nope"), openai.NotFoundError, "model_not_found"),
        (refused(servers.normal, "a cat"), openai.BadRequestError, "unsupported_input"),
        (refused(servers.normal, "https://example.org/cat.png"), openai.BadRequestError, "url_not_supported"),
        (refused(servers.normal, URI, dimensions=3), openai.BadRequestError, "unsupported_input"),
        (refused(servers.normal, [[1037, 4937]]), openai.UnprocessableEntityError, "invalid_options"),
        (refused(servers.normal, large), openai.APIStatusError, "body_too_large"),
        (refused(servers.normal, [URI] * 5), openai.APIStatusError, "too_many_images"),
        (refused(servers.normal, data_uri(PNG[:200])), openai.APIStatusError, "unsupported_image"),
        (refused(servers.starting, URI), openai.InternalServerError, "not_ready"),
    ]

    for error, kind, code in cases:
        assert isinstance(error, kind)
        assert code == error.code
        assert error.request_id
        assert str(error.status_code) in str(error)


def test_a_full_queue(servers: Servers) -> None:
    """A full queue gives RateLimitError after one request and two retries."""
    with servers.held_full() as hold:
        with pytest.raises(openai.RateLimitError, match="VIM_QUEUE_IMAGES"):
            client(servers.full, max_retries=2).embeddings.create(model=NAME, input=URI)
        assert 3 == hold.refused


def test_it_comes_back_when_the_queue_has_room(servers: Servers) -> None:
    """The client retries after a refusal until the queue has room, without an error for the caller."""
    with servers.held_full() as hold:
        waiting = hold.release_after_a_refusal()
        answer = client(servers.full, max_retries=5).embeddings.create(model=NAME, input=URI)
        waiting.join()
        assert hold.refused >= 1

    assert native.embedding(servers.full, PNG) == pytest.approx(answer.data[0].embedding, abs=native.TOLERANCE)
