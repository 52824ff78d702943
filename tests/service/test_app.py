"""The application frees the memory of a request that it has answered."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import httpx
import pytest

from tests.service.images.image_files import BOMBS
from tests.tiny import photo

pytestmark = pytest.mark.anyio

SIZE = 200_000
JUNK = b"junk" + bytes(SIZE)
FORM = {"Content-Type": "multipart/form-data; boundary=cut"}
LATE = {"X-Request-Timeout-Ms": "1"}


def texts(*images: bytes) -> bytes:
    """A JSON body of images."""
    return b'{"images": [%s]}' % b", ".join(b'"%s"' % base64.b64encode(image) for image in images)


@contextmanager
def cycles() -> Iterator[list[bytes]]:
    """Yield a list; after the block it has the large bytes objects that only the garbage collector would have freed."""
    found: list[bytes] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        frames = [one for one in gc.garbage if isinstance(one, FrameType)]
        held: list[object] = [value for frame in frames for value in frame.f_locals.values()]
        found += [bytes(one) for one in held if isinstance(one, bytes | bytearray) and len(one) >= SIZE]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        pytest.param("/v1/classify", JUNK, {}, 415, id="no image"),
        pytest.param("/v1/classify", BOMBS[0]() + bytes(SIZE), {}, 413, id="too many pixels"),
        pytest.param("/v1/embed", texts(JUNK, JUNK), {}, 415, id="two that are no images"),
        pytest.param("/v1/embed", b'{"images": ' + b"[" * SIZE, {}, 400, id="broken JSON"),
        pytest.param("/v1/embed", bytes(SIZE), FORM, 400, id="broken form"),
        pytest.param("/v1/embed", b"\x1f\x8b" + bytes(SIZE), {"Content-Encoding": "gzip"}, 400, id="not gzip"),
        pytest.param("/v1/classify", texts(*[photo() + bytes(SIZE)] * 9), LATE, 504, id="too late"),
        pytest.param("/v1/bulk", b'{"image": ' + b"[" * SIZE + b"\n", {}, 200, id="a broken line"),
    ],
)
async def test_a_refused_body_is_free_at_once(
    client: httpx.AsyncClient, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    """The body of a refused request is freed at once, without a search for reference cycles."""
    with cycles() as held:
        answer = await client.post(path, content=body, headers=headers)
        await asyncio.sleep(0.05)

    assert (status, []) == (answer.status_code, held)


async def test_the_body_of_a_client_that_left_is_free_at_once(client: httpx.AsyncClient) -> None:
    """The body is freed at once when the client disconnects during decoding."""
    body = photo(size=(3000, 2000)) + bytes(SIZE)
    with cycles() as held:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.002):
                await client.post("/v1/embed", content=body)
        await asyncio.sleep(0.5)

    assert held == []


async def test_the_openapi_document_works_behind_a_path_prefix(client: httpx.AsyncClient) -> None:
    """`/openapi.json` read as `/vision/openapi.json` describes `/vision/v1/...`: the server is relative to it."""
    assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "."}]


async def test_the_openapi_document_is_written_for_a_reader(client: httpx.AsyncClient) -> None:
    """The OpenAPI document has an introduction, a description of each group, and written summaries."""
    document = (await client.get("/openapi.json")).json()
    operations = [one for path in document["paths"].values() for one in path.values()]

    assert "curl --data-binary" in document["info"]["description"]
    assert {tag for one in operations for tag in one["tags"]} == {tag["name"] for tag in document["tags"]}
    assert {one["summary"] for one in operations} >= {"Classify images", "Create embeddings", "Run inference"}
