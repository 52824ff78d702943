"""Hostile requests with the answers that they must get, and good requests between them that must not be affected."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from PIL import Image

from tests.service.images import slow_files
from tests.service.images.image_files import BOMBS, encode, mutations, photo, png_header
from tests.tiny import photo as photograph


@dataclass(frozen=True)
class Attack:
    """One request and the error codes that may answer it."""

    name: str
    body: Callable[[], bytes]
    codes: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)


def form_of(parts: int) -> bytes:
    """A form with `count` options."""
    part = b'--cut\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    return part * parts + b"--cut--\r\n"


def json_of(count: int) -> bytes:
    """A JSON body with `count` empty lists."""
    return b'{"images": [' + b"[]," * count + b"[]]}"


FORM = {"Content-Type": "multipart/form-data; boundary=cut"}
GZIP = {"Content-Encoding": "gzip"}
TOO_MUCH = ("too_many_pixels", "image_too_complex")
ATTACKS = [
    Attack("100 kB PNG of 30,000 x 30,000", lambda: png_header(30_000, 30_000), TOO_MUCH),
    Attack("PNG of 1 x 65,000", lambda: encode(Image.new("RGB", (1, 65_000)), "PNG"), ("answered",)),  # small enough
    *(Attack(bomb.__name__, bomb, TOO_MUCH) for bomb in BOMBS),
    Attack("JPEG of 10,000 scans", lambda: slow_files.jpeg_scans(10_000), TOO_MUCH),
    Attack("JPEG of 4 million segments", lambda: slow_files.jpeg_segments(4_000_000), TOO_MUCH),
    Attack("PNG of a million chunks", lambda: slow_files.png_chunks(1_000_000), TOO_MUCH),
    Attack("BMP of 9 million runs", lambda: slow_files.bmp_runs(9_000_000), TOO_MUCH),
    Attack("TIFF of 2 million strips", lambda: slow_files.tiff_strips(2_000_000), TOO_MUCH),
    Attack("GIF of 9 million blocks", lambda: slow_files.gif_blocks(9_000_000), TOO_MUCH),
    Attack(
        "a gzip bomb", lambda: gzip.compress(bytes(200_000_000), 1), ("body_too_large",), {"Content-Encoding": "gzip"}
    ),
    Attack("a form of 10,000 parts", lambda: form_of(10_000), ("too_many_images",), FORM),
    Attack("JSON 10,000 deep", lambda: b'{"images": ' + b"[" * 10_000, ("malformed_body",)),
    Attack("JSON of 6 million lists", lambda: json_of(6_000_000), ("body_too_large",)),
    Attack(
        "a text of data: again and again",
        lambda: json.dumps({"images": ["data:" * 3_000_000]}).encode(),
        ("malformed_body",),
    ),
    Attack("21 MB", lambda: bytes(21 << 20), ("body_too_large",)),
    Attack("a URL", lambda: b'{"images": ["http://169.254.169.254/latest/meta-data"]}', ("url_not_supported",)),
]


def assault(client: httpx.Client, attack: Attack) -> tuple[str, float]:
    """The error code of the answer to an attack, and its seconds."""
    answer = client.post("/v1/classify", content=attack.body(), headers=attack.headers)
    return answer.json().get("code", "answered"), answer.elapsed.total_seconds()


def mutated(count: int, seed: int = 7) -> list[bytes]:
    """Damaged copies of good files of every format."""
    return mutations(seed, count)


def bad_requests() -> list[tuple[bytes, dict[str, str]]]:
    """Small attacks of every kind of refusal, for a long run."""
    text = base64.b64encode(encode(photo(), "PNG")[:60]).decode()
    return [
        (b"", {}),
        (b"junk", {}),
        (photograph()[:300], {}),
        (png_header(30_000, 30_000), {}),
        (slow_files.jpeg_scans(200), {}),
        (form_of(200), FORM),
        (b'{"images": [[[[', {}),
        (json.dumps({"images": [text]}).encode(), {}),
        (b"not gzip", GZIP),
        (photograph(), {"X-Request-Timeout-Ms": "soon"}),
    ]
