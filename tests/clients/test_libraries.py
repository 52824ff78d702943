"""Libraries on top of OpenAI's contract: LangChain, LlamaIndex and infinity-client. Each gets data URIs as texts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients import native
from tests.clients.pictures import data_uri, picture
from tests.clients.servers import MAX_BODY, NAME, Servers

pytestmark = pytest.mark.filterwarnings("ignore")

PNGS = [picture(seed) for seed in range(2)]
URIS = [data_uri(one) for one in PNGS]
Embed = Callable[[list[str]], list[list[float]]]


def langchain(url: str, model: str = NAME) -> Embed:
    """Embeddings by langchain-openai, which is told not to send token ids."""
    library: Any = pytest.importorskip("langchain_openai", reason="make test-clients installs langchain-openai")
    made: Embed = library.OpenAIEmbeddings(
        base_url=url + "/v1", api_key="none", model=model, check_embedding_ctx_length=False, max_retries=0
    ).embed_documents
    return made


def llama_index(url: str, model: str = NAME) -> Embed:
    """Embeddings by the package llama-index-embeddings-openai-like."""
    library: Any = pytest.importorskip(
        "llama_index.embeddings.openai_like", reason="make test-clients installs llama-index-embeddings-openai-like"
    )
    made: Embed = library.OpenAILikeEmbedding(
        model_name=model, api_base=url + "/v1", api_key="none", max_retries=0
    ).get_text_embedding_batch
    return made


BOTH = pytest.mark.parametrize("library", [langchain, llama_index])


@BOTH
def test_embeddings(servers: Servers, library: Callable[..., Embed]) -> None:
    """Embeddings come in order and are equal to the native answer."""
    found = library(servers.normal)(URIS)

    for image, vector in zip(PNGS, found, strict=True):
        assert native.embedding(servers.normal, image) == pytest.approx(vector, abs=native.TOLERANCE)


@BOTH
def test_errors(servers: Servers, library: Callable[..., Embed]) -> None:
    """The library's error contains the service's message."""
    embed = library(servers.normal)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: embed(["a cat"]), "vision-only"),
        (lambda: library(servers.normal, "nope")(URIS), "does not exist"),
        (lambda: embed([data_uri(PNGS[0][:200])]), "accepted formats"),
        (lambda: embed(URIS * 3), "VIM_MAX_IMAGES"),
        (lambda: library(servers.starting)(URIS), "being loaded"),
    ]
    for call, says in cases:
        with pytest.raises(Exception, match=says):
            call()
    with servers.held_full(), pytest.raises(Exception, match="VIM_QUEUE_IMAGES"):
        library(servers.full)(URIS[:1])


def test_token_ids_are_explained(servers: Servers) -> None:
    """Token ids, which LangChain sends by default, are refused with a message that says how to avoid them."""
    library: Any = pytest.importorskip("openai", reason="make test-clients installs openai")
    client = library.OpenAI(base_url=servers.normal + "/v1", api_key="none", max_retries=0)

    with pytest.raises(library.UnprocessableEntityError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=NAME, input=[[11, 12, 13]])


def infinity(url: str, image: str, model: str = NAME) -> Any:
    """The detailed answer of infinity-client for one image."""
    library: Any = pytest.importorskip("infinity_client", reason="make test-clients installs infinity-client")
    embeddings: Any = importlib.import_module("infinity_client.api.default.embeddings")
    models: Any = importlib.import_module("infinity_client.models")
    modality = models.OpenAIEmbeddingInputImageModality("image")
    body = models.OpenAIEmbeddingInputImage(input_=[image], model=model, modality=modality)
    with library.Client(base_url=url, raise_on_unexpected_status=True, timeout=120) as client:
        return embeddings.sync_detailed(client=client, body=body)


def test_infinity_client(servers: Servers) -> None:
    """infinity-client uses /embeddings with a modality, and shows the body of an error."""
    found = infinity(servers.normal, URIS[0]).parsed

    assert native.embedding(servers.normal, PNGS[0]) == pytest.approx(found.data[0].embedding, abs=native.TOLERANCE)
    cases = [
        ((servers.normal, URIS[0], "nope"), "does not exist"),
        ((servers.normal, "a cat"), "vision-only"),
        ((servers.normal, data_uri(PNGS[0][:200])), "accepted formats"),
        ((servers.normal, data_uri(bytes(MAX_BODY))), "VIM_MAX_BODY_BYTES"),
        ((servers.starting, URIS[0]), "being loaded"),
    ]
    for given, says in cases:
        with pytest.raises(Exception, match=says):
            infinity(*given)
    with servers.held_full(), pytest.raises(Exception, match="VIM_QUEUE_IMAGES"):
        infinity(servers.full, URIS[0])
