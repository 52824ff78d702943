"""The request and response bodies of the compatible contracts, for the OpenAPI document only.

`service.api.schemas` has the native bodies. The models that validate requests are in the module of each contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from service.api.schemas import BY_URL, HEADERS, MOST_CLASSES, PIXEL

Json = dict[str, Any]

IMAGE_TEXT: Json = {
    "type": "string",
    "format": "byte",
    "description": f"Base64 of an image file, or a base64 data URI. {BY_URL}",
    "example": PIXEL,
}
FILE: Json = {"type": "string", "format": "binary"}


def body_of(schemas: Mapping[str, Json], parameters: Sequence[Json] = ()) -> Json:
    """The OpenAPI description of a request: its body by media type, its parameters and the common headers."""
    content = {name: {"schema": one} for name, one in schemas.items()}
    return {"parameters": [*parameters, *HEADERS], "requestBody": {"required": True, "content": content}}


class OpenAIError(BaseModel):
    """The `error` object of OpenAI."""

    message: str
    type: str
    param: str | None = None
    code: str


class OpenAIProblem(BaseModel):
    """The body of every error on OpenAI's paths."""

    error: OpenAIError
    detail: str
    status: int
    instance: str
    request_id: str
    retry_after_s: float | None = None


class OpenAIEmbedding(BaseModel):
    """The embedding of one image."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Floats, or base64 of little-endian float32.")


class OpenAIUsage(BaseModel):
    """The number of images; OpenAI counts tokens here."""

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
        "model": {"type": "string", "description": "The served name; optional."},
        "input": {
            "description": "One image or a list of images.",
            "anyOf": [IMAGE_TEXT, {"type": "array", "minItems": 1, "items": IMAGE_TEXT}],
        },
        "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "description": "Must be the embedding dimension of the model."},
        "normalized": {"type": "boolean", "default": True},
    },
}


class Scored(BaseModel):
    """One class, in Hugging Face's format."""

    label: str
    score: float


HUGGINGFACE_BODY: Json = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {
            "description": "One image, or a list of images; the answer then has a list for each image.",
            "anyOf": [IMAGE_TEXT, {"type": "array", "minItems": 1, "items": IMAGE_TEXT}],
        },
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_CLASSES},
                "function_to_apply": {"enum": ["softmax", None]},
            },
        },
    },
}


class WeaviateVector(BaseModel):
    """Response of /vectors."""

    id: Any = Field(description="The id of the request.")
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
    "properties": {"id": {"description": "Any value; it is sent back."}, "image": IMAGE_TEXT},
}
VECTORS_BODY: Json = {
    "type": "object",
    "required": ["images"],
    "properties": {
        "images": {"type": "array", "minItems": 1, "items": IMAGE_TEXT},
        "texts": {"type": "array", "maxItems": 0, "description": "Must be empty: the model has no text encoder."},
    },
}


class OipTensor(BaseModel):
    """One output; with `binary_data` its values follow the JSON."""

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
    """One input or output; -1 means any size."""

    name: str
    datatype: str
    shape: list[int]


class OipMetadata(BaseModel):
    """The inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[OipMetadataTensor]
    outputs: list[OipMetadataTensor]


_PARAMETERS: Json = {"type": "object", "description": "Unknown parameters are ignored."}
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
        "datatype": {"type": "string", "enum": ["BYTES", "UINT8"], "description": "UINT8: for NAME-tensor only."},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 8},
        "parameters": _PARAMETERS,
        "data": {
            "description": "Base64 strings, or pixels.",
            "anyOf": [{"type": "array", "items": IMAGE_TEXT | {"description": "No URLs."}}, {"type": "array"}],
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
