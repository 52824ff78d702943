"""Which clients are run, in which version, and what is called: for `make test-clients` and the README's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["core", "kserve", "libraries", "node", "perf", "none"]


@dataclass(frozen=True)
class Client:
    """One client, the environment that it is installed in, the tests that run it, and what they call."""

    name: str
    version: str
    place: Place
    tests: str
    calls: str

    @property
    def pin(self) -> str:
        """The requirement with its version, for pip or npm."""
        return f"{self.name}@{self.version}" if self.place == "node" else f"{self.name}=={self.version}"


CLIENTS = (
    Client(
        "tritonclient[http]",
        "2.73.0",
        "core",
        "test_tritonclient.py",
        "sync and aio: health, metadata, config, statistics, infer (BYTES, UINT8, JSON, binary, `class_count`, gzip)",
    ),
    Client(
        "tritonclient[grpc]",
        "2.73.0",
        "core",
        "test_tritonclient_grpc.py",
        "sync, aio and streams: health, metadata, config, statistics, repository, infer (BYTES, UINT8, `class_count`)",
    ),
    Client(
        "kserve",
        "0.21.0",
        "kserve",
        "test_kserve.py",
        "`InferenceRESTClient`, v2, and `InferenceGRPCClient`: health, infer (BYTES, UINT8)",
    ),
    Client(
        "huggingface_hub",
        "2.4.0",
        "core",
        "test_huggingface_hub.py",
        "`InferenceClient`, `AsyncInferenceClient`: `image_classification` (bytes, path, parameters), health, info",
    ),
    Client(
        "openai",
        "3.54.0",
        "core",
        "test_openai.py",
        "`OpenAI`, `AsyncOpenAI`: `embeddings.create` (base64, float), `models`, retries after 429",
    ),
    Client(
        "langchain-openai",
        "1.7.3",
        "libraries",
        "test_libraries.py",
        "`OpenAIEmbeddings.embed_documents` (`check_embedding_ctx_length=False`)",
    ),
    Client(
        "llama-index-embeddings-openai-like",
        "0.4.0",
        "libraries",
        "test_libraries.py",
        "`OpenAILikeEmbedding.get_text_embedding_batch`",
    ),
    Client("infinity-client", "0.0.78", "libraries", "test_libraries.py", "`embeddings` with `modality` image"),
    Client(
        "openai", "7.57.0", "node", "test_node.py", "JavaScript: `embeddings.create`, `models.list`, retries after 429"
    ),
    Client("@huggingface/inference", "4.13.30", "node", "test_node.py", "JavaScript: `imageClassification`"),
    Client(
        "tritonclient",
        "2.51.0",
        "perf",
        "test_perf_analyzer.py",
        "its `perf_analyzer`: two concurrencies over HTTP and gRPC, and streams",
    ),
    Client(
        "Weaviate",
        "—",
        "none",
        "test_weaviate.py",
        "its requests replayed without Content-Type: `/vectors`, `/vectorize`, `/meta`, probes",
    ),
)


def of(place: Place) -> list[Client]:
    """The clients of one environment."""
    return [client for client in CLIENTS if client.place == place]
