"""Hooks for schemathesis: images, lines of NDJSON, and rules that a schema cannot express.

They run inside schemathesis (`schemathesis.toml`), which generates everything else.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.transport.serialization import Binary

LONG_MS = 10_000
UNKNOWN = "x-schemathesis-unknown-property"  # the header that schemathesis adds


def _image(kind: str, mode: str, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(stream, kind)
    return stream.getvalue()


IMAGES = [_image("PNG", "RGB", (1, 1)), _image("JPEG", "RGB", (90, 70)), _image("GIF", "P", (40, 50))]
TEXTS = [base64.b64encode(image).decode() for image in IMAGES]
LINES = [json.dumps({"id": number, "image": text}).encode() for number, text in enumerate(TEXTS)]

schemathesis.openapi.format("byte", st.sampled_from(TEXTS))
schemathesis.openapi.format("binary", st.sampled_from(IMAGES).map(Binary))
schemathesis.openapi.media_type(
    "application/x-ndjson",
    st.lists(st.sampled_from([*LINES, b"{}", b"", b"\xff"]), max_size=4).map(b"\n".join),
)
for media_type in ("image/png", "image/jpeg", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, st.sampled_from(IMAGES))


def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Return False for a reported failure that is a correct answer, which the schema cannot express."""
    return not (
        _wanted_sooner(case, response)
        or _said_twice(response)
        or _another_size(response)
        or _unknown_header(failure, case)
    )


def _wanted_sooner(case: Any, response: Any) -> bool:
    """With a time limit of 1 ms the server answers 504, as documented. Without that header 504 is a failure."""
    given = str((case.headers or {}).get("X-Request-Timeout-Ms", ""))
    return response.status_code == 504 and given.isdigit() and int(given) < LONG_MS


def _said_twice(response: Any) -> bool:
    """An option may be in the query or in the body, but not in both."""
    return response.status_code == 422 and b"given in the query and in the body" in response.content


def _another_size(response: Any) -> bool:
    """OpenAI's `dimensions` must be the model's own; a number of hundreds of digits is refused before that."""
    said = {400: b"embeddings of this model have", 422: b"dimensions: Unable to parse input string as an integer"}
    return said.get(response.status_code, b"\0") in response.content


def _unknown_header(failure: Any, case: Any) -> bool:
    """A server ignores headers that it does not know (RFC 9110); schemathesis expects a refusal."""
    return type(failure).__name__ == "AcceptedNegativeData" and UNKNOWN in map(str.lower, case.headers or {})


schemathesis.hook(filter_failure)
