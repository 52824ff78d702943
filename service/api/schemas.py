"""The options and response bodies of the native API, for the OpenAPI document; only options are validated."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from model.preprocessing.recipe import Crop
from service.heads.scoring import MOST_HEADS
from service.heads.store import NAME
from service.images.formats import ACCEPTED
from service.jobs import RequestClass

MOST_CLASSES = 1_000_000  # the largest `top_k`; far more than any model has
_NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,3})?", re.ASCII)


def _whole(value: object) -> int:
    """Validate a whole number of JSON, query or form. 3.0 is accepted, as in JSON Schema; 3.5 and true are not."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value) if {".", "e", "E"} & set(value) else int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("must be a whole number")


def _distinct(value: object) -> object:
    """Validate names in the query, form or JSON: one, or a list of different ones."""
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and len(set(map(str, names))) < len(names):
        raise ValueError("a name is given twice")
    return names


TopK = Annotated[int, Field(ge=1, le=MOST_CLASSES), BeforeValidator(_whole)]
HeadName = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
HeadNames = Annotated[list[HeadName], Field(max_length=MOST_HEADS), BeforeValidator(_distinct)]


class ImageOptions(BaseModel):
    """Options of the native endpoints for every task."""

    model_config = ConfigDict(extra="forbid")

    crop: Crop = Field(
        "center",
        description="The part of the image that the model receives. `center`: the middle, as in training. `full`: the "
        "whole image, squashed to a square. `pad`: the whole image on a black square. Embeddings of different crops do "
        "not match.",
    )
    model: str | None = Field(None, max_length=200, description="The model to use; by default the first of the server.")


class ClassesOptions(BaseModel):
    """Options of a classification."""

    head: HeadNames = Field(
        [],
        description="A custom head that classifies instead of the model's own. Give it several times for several "
        "heads; each result then has `heads` with the predictions of each.",
    )
    reject: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Adds `label` to each result: the best class, or null if `in_domain` is below this. 0.05 rejects "
        "5 % of the images that are like the taught ones, and those of the others that the model can tell.",
    )


class ClassifyOptions(ImageOptions, ClassesOptions):
    """Options of /v1/classify."""

    top_k: TopK = Field(5, description="How many classes to return; clamped to the number of classes.")


class EmbedOptions(ImageOptions):
    """Options of /v1/embed."""

    normalize: bool = Field(True, description="Scale the embedding to unit length (L2).")
    pooling: Literal["cls", "mean"] = Field(
        "cls",
        description="`cls`: input of the classifier head. `mean`: mean of the patch tokens after the final norm. "
        "`/info` has both dimensions; they differ for Mamba-Reg.",
    )
    encoding: Literal["float", "base64"] = Field(
        "float", description="`base64`: the embedding as base64 of little-endian float32, less than half the size."
    )


class BulkOptions(EmbedOptions, ClassesOptions):
    """Options of /v1/bulk, for both operations; given in the query."""

    op: Literal["classify", "embed"] = Field("embed", description="What to compute for each image.")
    top_k: TopK = Field(5, description="With `classify`: how many classes; clamped to the number of classes.")


class ModelIdentity(BaseModel):
    """Identifies the weights, configuration and preprocessing that computed this answer."""

    name: str
    fingerprint: str = Field(description="12 hex digits; they change with everything that changes an embedding.")


class Prediction(BaseModel):
    """One class."""

    index: int
    label: str
    score: float = Field(description="Softmax or sigmoid of the logit, as `/info` says in `model.scores`.")


class ItemError(BaseModel):
    """Why one image of several failed."""

    code: str
    message: str
    status: int = Field(description="The status that a request for this image alone would have.")


class Classes(BaseModel):
    """The classes of one image, best first, or its error."""

    predictions: list[Prediction] | None = None
    in_domain: float | None = Field(
        None,
        description="From 0 to 1: the share of images like the taught ones that are at least as unusual as this one. "
        "Absent if the model or head cannot tell.",
    )
    label: str | None = Field(None, description="With `reject`: the best class, or null for a rejected image.")
    error: ItemError | None = None


class Classified(Classes):
    """The classes of one image by the model or by heads, or its error."""

    index: int
    heads: dict[str, Classes] | None = Field(None, description="By name, if the request names several heads.")


class Embedded(BaseModel):
    """The embedding of one image, or its error."""

    index: int
    embedding: list[float] | str | None = Field(None, description="Floats, or base64 with encoding=base64.")
    dim: int | None = None
    pooling: Literal["cls", "mean"] | None = None
    normalized: bool | None = None
    crop: Crop | None = None
    error: ItemError | None = None


class ClassifyResponse(BaseModel):
    """Response of /v1/classify."""

    model: ModelIdentity
    heads: dict[str, str] | None = Field(None, description="The fingerprint of each custom head that answered.")
    results: list[Classified]
    timings_ms: dict[str, float]
    batches: list[int] = Field(description="Sizes of the forward passes that ran these images.")


class EmbedResponse(BaseModel):
    """Response of /v1/embed."""

    model: ModelIdentity
    results: list[Embedded]
    timings_ms: dict[str, float]
    batches: list[int] = Field(description="Sizes of the forward passes that ran these images.")


class Problem(BaseModel):
    """The body of every error (RFC 9457 with a few more members)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    code: str
    request_id: str
    retry_after_s: float | None = None
    message: str
    errors: list[dict[str, Any]] | None = None
    results: list[dict[str, Any]] | None = Field(None, description="The errors of all images, if all have failed.")


_BINARY = {"type": "string", "format": "binary"}
BY_URL = "http and https URLs are fetched from the hosts in the server's setting VIM_FETCH_HOSTS, others are refused."
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"


def _json_body(options: type[BaseModel]) -> dict[str, Any]:
    images = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "format": "byte"},
        "description": f"Base64 strings or base64 data URIs. {BY_URL}",
        "example": [PIXEL],
    }
    properties = {"images": images} | options.model_json_schema()["properties"]
    return {"type": "object", "required": ["images"], "properties": properties, "additionalProperties": False}


def _form_body(options: type[BaseModel]) -> dict[str, Any]:
    files = {
        "type": "array",
        "minItems": 1,
        "items": _BINARY,
        "description": "One or more files; the field's name does not matter.",
    }
    properties = {"image": files} | options.model_json_schema()["properties"]
    return {"type": "object", "required": ["image"], "properties": properties, "additionalProperties": False}


HEADERS: list[dict[str, Any]] = [
    {
        "name": "X-Request-Class",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "enum": list(get_args(RequestClass)), "default": "interactive"},
        "description": "`bulk` for work without a waiting user: it uses the capacity that interactive requests leave.",
    },
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 1},
        "description": "Time limit for the answer in milliseconds, at most the server's own limit; then 504.",
    },
]

LINE_TIMEOUT = HEADERS[1] | {"description": "Time limit for each line in milliseconds, at most the server's own limit."}


def query(options: type[BaseModel]) -> list[dict[str, Any]]:
    """The options as parameters of the query."""
    return [
        {"name": name, "in": "query", "required": False, "schema": one, "description": one.get("description", "")}
        for name, one in options.model_json_schema()["properties"].items()
    ]


def operation(options: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a request: options in the query, and the forms of a body."""
    content = {
        "image/*": {"schema": _BINARY},
        "application/octet-stream": {"schema": _BINARY},
        "multipart/form-data": {"schema": _form_body(options)},
        "application/json": {"schema": _json_body(options), "example": {"images": [PIXEL]}},
    }
    text = (
        f"One image file ({', '.join(ACCEPTED)}; with any Content-Type), a form with one or more files, or "
        "JSON with base64. Pass options as query parameters, form fields or JSON members."
    )
    return {
        "parameters": query(options) + HEADERS,
        "requestBody": {"required": True, "description": text, "content": content},
    }


Responses = dict[int | str, dict[str, Any]]

INFERENCE = (400, 404, 408, 413, 415, 422, 429, 500, 503, 504)


def problems(*statuses: int, model: type[BaseModel] = Problem) -> Responses:
    """The error responses of an operation. With API keys, `service.api.openapi` adds 401 to all except the probes."""
    return {status: {"model": model} for status in statuses}
