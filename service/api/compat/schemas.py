"""Bodies of the other contracts, as the OpenAPI document shows them. Nothing is validated by them.

The native ones are in `service.api.schemas`; what a contract understands of a request is in its own module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from service.api.schemas import HEADERS, PIXEL

Json = dict[str, Any]

IMAGE_TEXT: Json = {
    "type": "string",
    "format": "byte",
    "description": "Base64 of an image file, or a base64 data URI. URLs are not fetched.",
}
FILE: Json = {"type": "string", "format": "binary"}


def body_of(schemas: Mapping[str, Json], parameters: Sequence[Json] = ()) -> Json:
    """What goes into an operation: a body, by media type, and the headers that all of them understand."""
    content = {name: {"schema": one} for name, one in schemas.items()}
    return {"parameters": [*parameters, *HEADERS], "requestBody": {"required": True, "content": content}}


class OpenAIError(BaseModel):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None = None
    code: str


class OpenAIProblem(BaseModel):
    """Every error's body on OpenAI's paths."""

    error: OpenAIError
    detail: str
    status: int
    instance: str
    request_id: str
    retry_after_s: float | None = None


class OpenAIEmbedding(BaseModel):
    """One image's embedding."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Floats, or base64 of little-endian float32.")


class OpenAIUsage(BaseModel):
    """Counts images, where OpenAI counts tokens."""

    prompt_tokens: int
    total_tokens: int


class OpenAIEmbeddings(BaseModel):
    """Response of /v1/embeddings."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIModel(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(BaseModel):
    """Response of /v1/models."""

    object: Literal["list"]
    data: list[OpenAIModel]


OPENAI_BODY: Json = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "model": {"type": "string", "description": "The served name, or nothing."},
        "input": {
            "description": "An image, or several.",
            "anyOf": [IMAGE_TEXT, {"type": "array", "minItems": 1, "items": IMAGE_TEXT}],
        },
        "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "description": "Of the model; no other can be had."},
        "normalized": {"type": "boolean", "default": True},
    },
}


class Scored(BaseModel):
    """One class, in Hugging Face's words."""

    label: str
    score: float


HUGGINGFACE_BODY: Json = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {
            "description": "An image, or several; then a list comes back for each.",
            "anyOf": [IMAGE_TEXT, {"type": "array", "minItems": 1, "items": IMAGE_TEXT}],
        },
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "top_k": {"type": ["integer", "null"], "minimum": 1},
                "function_to_apply": {"enum": ["softmax", None]},
            },
        },
    },
}


class WeaviateVector(BaseModel):
    """Response of /vectors."""

    id: Any = Field(description="As it was sent.")
    vector: list[float]
    dim: int


class WeaviateVectors(BaseModel):
    """Response of /vectorize."""

    text_vectors: list[list[float]] = Field(alias="textVectors")
    image_vectors: list[list[float]] = Field(alias="imageVectors")


class WeaviateMeta(BaseModel):
    """Response of /meta."""

    service: str
    version: str
    model: Json


VECTOR_BODY: Json = {
    "type": "object",
    "required": ["image"],
    "properties": {"id": {"type": "string"}, "image": IMAGE_TEXT},
}
VECTORS_BODY: Json = {
    "type": "object",
    "required": ["images"],
    "properties": {
        "images": {"type": "array", "minItems": 1, "items": IMAGE_TEXT},
        "texts": {"type": "array", "maxItems": 0, "description": "There is no text tower."},
    },
}


class OipTensor(BaseModel):
    """One output; with `binary_data` its numbers follow the JSON."""

    name: str
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    data: list[float] | list[str] | None = None
    parameters: Json | None = None


class OipAnswer(BaseModel):
    """Response of infer."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: Json
    outputs: list[OipTensor]


class OipMetadataTensor(BaseModel):
    """An input or output; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class OipMetadata(BaseModel):
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[OipMetadataTensor]
    outputs: list[OipMetadataTensor]


_PARAMETERS: Json = {"type": "object", "description": "What is not understood is ignored."}
_OUTPUT: Json = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "enum": ["scores", "embedding", "labels"]},
        "parameters": _PARAMETERS,
    },
}
_INPUT: Json = {
    "type": "object",
    "required": ["name", "datatype", "shape", "data"],
    "properties": {
        "name": {"type": "string", "enum": ["image"]},
        "datatype": {"type": "string", "enum": ["BYTES", "UINT8"], "description": "UINT8 for NAME-tensor."},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 8},
        "parameters": _PARAMETERS,
        "data": {
            "description": "Base64 texts, or pixels.",
            "anyOf": [{"type": "array", "items": IMAGE_TEXT}, {"type": "array"}],
        },
    },
}
OIP_BODY: Json = {
    "type": "object",
    "example": {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [PIXEL]}]},
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _INPUT},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
