"""The requests of the fault tests: every form of a body, one image or several, small or large, good or bad. Also
compares answers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from tests.tiny import photo

TOLERANCE = 1e-5
LARGE = (2400, 1600)
_PASSING = {"timings_ms", "request_id", "batches"}  # members that differ in every answer


@dataclass(frozen=True)
class Call:
    """One request and the status that must answer it."""

    name: str
    path: str
    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


def raw(name: str, path: str, content: bytes, status: int = 200, **headers: str) -> Call:
    """A body that is the image file."""
    return Call(name, path, content, headers, status)


def form(name: str, path: str, images: Sequence[bytes], status: int = 200) -> Call:
    """The images as files of a form, encoded once."""
    files = [("image", (f"{index}.bin", image)) for index, image in enumerate(images)]
    request = httpx.Request("POST", "http://any", files=files)
    return Call(name, path, request.read(), {"Content-Type": request.headers["Content-Type"]}, status)


def as_json(name: str, path: str, images: Sequence[bytes], status: int = 200, **options: object) -> Call:
    """A JSON body with the images as base64."""
    texts = [base64.b64encode(image).decode() for image in images]
    content = json.dumps({"images": texts} | options).encode()
    return Call(name, path, content, {"Content-Type": "application/json"}, status)


def lines(images: Sequence[bytes]) -> bytes:
    """The images as a stream for /v1/bulk."""
    items = [{"id": number, "image": base64.b64encode(image).decode()} for number, image in enumerate(images)]
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def mixture() -> list[Call]:
    """Ten good kinds of request, two with a bad image among good ones, and four bad ones."""
    small = [photo(seed) for seed in range(6)]
    large, png = photo(6, LARGE), photo(7, (500, 400), "PNG")
    cut = small[0][: len(small[0]) // 2]
    return [
        raw("classify one", "/v1/classify", small[0]),
        raw("classify another", "/v1/classify?top_k=2", small[1]),
        raw("classify a large one", "/v1/classify", large),
        form("classify a form of two", "/v1/classify", [small[2], png]),
        as_json("classify JSON of three", "/v1/classify", small[3:6], top_k=1),
        raw("embed one", "/v1/embed", png),
        form("embed a form of four", "/v1/embed", small[:4]),
        as_json("embed JSON", "/v1/embed", [small[4]], pooling="mean", normalize=False),
        raw("embed as float32", "/v1/embed", small[5], Accept="application/octet-stream"),
        form("a bad one among good ones", "/v1/classify", [small[0], cut, small[1]]),
        raw("a stream", "/v1/bulk?pooling=mean", lines([*small[2:], png])),
        raw("a stream with a bad one", "/v1/bulk?op=classify", lines([small[0], cut, small[1]])),
        raw("cut short", "/v1/classify", cut, 415),
        raw("empty", "/v1/embed", b"", 400),
        raw("unknown option", "/v1/classify?topk=3", small[2], 422),
        raw("broken JSON", "/v1/embed", b'{"images": [', 400),
    ]


def content_of(answer: httpx.Response) -> Any:
    """The content of an answer: its JSON, all its lines, or its float32 numbers."""
    if answer.headers["content-type"] == "application/x-ndjson":
        return [json.loads(line) for line in answer.text.splitlines()]
    if answer.headers["content-type"] == "application/octet-stream":
        return [answer.headers["x-shape"], *np.frombuffer(answer.content, "<f4").tolist()]
    return answer.json()


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """The first difference of two answers: numbers by more than 1e-5, other values at all."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        for name in found.keys() - _PASSING:
            yield from differences(found[name], expected[name], f"{where}.{name}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif isinstance(found, float) and isinstance(expected, float):
        if not abs(found - expected) <= TOLERANCE:
            yield f"{where}: {found} for {expected}"
    elif found != expected:
        yield f"{where}: {str(found)[:80]!r} for {str(expected)[:80]!r}"
