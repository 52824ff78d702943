"""The native API's options and response bodies, as the OpenAPI document shows them. Only options are validated."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ClassifyOptions(BaseModel):
    """Options of /v1/classify."""

    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(5, ge=1, description="How many classes to return; clamped to the number of classes.")


class EmbedOptions(BaseModel):
    """Options of /v1/embed."""

    model_config = ConfigDict(extra="forbid")

    normalize: bool = Field(True, description="Scale the embedding to unit length (L2).")
    pooling: Literal["cls", "mean"] = Field(
        "cls",
        description="`cls`: what the classifier head sees. `mean`: the mean of the patch tokens after the final norm.",
    )


class ModelIdentity(BaseModel):
    """Which weights, configuration and preprocessing made this answer."""

    name: str
    fingerprint: str = Field(description="12 hex digits; anything that moves an embedding changes them.")


class Prediction(BaseModel):
    """One class."""

    index: int
    label: str
    score: float = Field(description="Softmax probability.")


class ItemError(BaseModel):
    """Why one image of several failed."""

    code: str
    message: str


class Classified(BaseModel):
    """One image's classes, best first, or its error."""

    index: int
    predictions: list[Prediction] | None = None
    error: ItemError | None = None


class Embedded(BaseModel):
    """One image's embedding, or its error."""

    index: int
    embedding: list[float] | None = None
    dim: int | None = None
    pooling: Literal["cls", "mean"] | None = None
    normalized: bool | None = None
    error: ItemError | None = None


class ClassifyResponse(BaseModel):
    """Response of /v1/classify."""

    model: ModelIdentity
    results: list[Classified]
    timings_ms: dict[str, float]


class EmbedResponse(BaseModel):
    """Response of /v1/embed."""

    model: ModelIdentity
    results: list[Embedded]
    timings_ms: dict[str, float]


class Problem(BaseModel):
    """Every error's body (RFC 9457 with a few more members)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    code: str
    request_id: str
    retry_after_s: float | None = None
    errors: list[dict[str, Any]] | None = None


_BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "description": "The bytes of one image: JPEG, PNG, WebP, GIF, BMP or TIFF, whatever the Content-Type says.",
        "required": True,
        "content": {"image/*": _BINARY, "application/octet-stream": _BINARY},
    }
}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 404, 413, 415, 422, 429, 500, 503, 504)
}
