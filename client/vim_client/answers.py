"""The answers of the client, and how they are read from the responses of the server."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from vim_client.http import Item

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and its score, a probability."""

    index: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The classes of an image, best first, and the fingerprint of the model.

    `in_domain` is from 0 to 1: the share of images like the taught ones that are at least as unusual; None if the model
    or head cannot tell. If several custom heads were asked, `heads` has the classes of each; `predictions` is empty.
    """

    predictions: tuple[Prediction, ...]
    fingerprint: str
    in_domain: float | None = None
    heads: Mapping[str, Classification] = field(default_factory=dict)


def json_object(answer: httpx.Response) -> dict[str, Any]:
    """The body, which must be an object. Raises TypeError or ValueError."""
    found = answer.json()
    if not isinstance(found, dict):
        raise TypeError
    return found


def first(answer: httpx.Response) -> Classification:
    """The classes of the only image of a request."""
    body = json_object(answer)
    return classification(body["results"][0] | {"fingerprint": body["model"]["fingerprint"]})


def classification(item: Item) -> Classification:
    """The classes of a line of a response of /v1/bulk."""
    fingerprint = item["fingerprint"]
    if "heads" in item:
        heads = {name: _classes(one, fingerprint) for name, one in item["heads"].items()}
        return Classification((), fingerprint, heads=heads)
    return _classes(item, fingerprint)


def _classes(item: Item, fingerprint: str) -> Classification:
    found = (Prediction(one["index"], one["label"], one["score"]) for one in item["predictions"])
    return Classification(tuple(found), fingerprint, item.get("in_domain"))


def vector(item: Item) -> Vector:
    """The embedding of a line of a response of /v1/bulk."""
    return np.frombuffer(base64.b64decode(item["embedding"]), "<f4").astype(np.float32)


def raw_vector(answer: httpx.Response) -> Vector:
    """The embedding of the only image of a request, from bytes."""
    return np.frombuffer(answer.content, "<f4").astype(np.float32)
