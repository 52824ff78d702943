"""A client of this server, synchronous (`Client`) and asynchronous (`AsyncClient`): images in, labels or numpy out.

    with Client("http://localhost:8000") as client:
        print(client.classify("photo.jpg").predictions[0].label)
        vectors = np.stack(list(client.embed_many(paths)))

An image is a path, the bytes of a file, a PIL image, or pixels as a numpy array: uint8 (H, W, 3), RGB. A server that is
busy (429) or not ready (503) is asked again, not before its `Retry-After`, a bounded number of times. Needs httpx and
numpy, Pillow for images that are not files, tqdm for progress bars, and nothing else of this project: copy the file.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import anyio.from_thread
import httpx
import numpy as np
from numpy.typing import NDArray

Image = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Any  # Any: a PIL image, without needing Pillow
Vector = NDArray[np.float32]
Pooling = Literal["cls", "mean"]
T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
LONGEST_WAIT_S = 30.0
FIRST_WAIT_S = 0.25
BUSY = {429, 503}
_LOST_TRIES = 3  # a connection that broke: the server may have closed an idle one


class ServerError(Exception):
    """What the server said when it did not answer: `status`, `code` (stable), `detail` and `request_id`."""

    def __init__(self, status: int, code: str, detail: str, request_id: str = "") -> None:
        super().__init__(f"{status} {code}: {detail}" if status else detail)
        self.status, self.code, self.detail, self.request_id = status, code, detail, request_id


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and its softmax probability."""

    index: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """An image's classes, best first, and the fingerprint of the model that said so."""

    predictions: tuple[Prediction, ...]
    fingerprint: str


class AsyncClient:
    """Ask from asyncio. `in_flight` is how many images `..._many` keep under way, and so in memory; `transport` is
    httpx's, for proxies and tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120,
        tries: int = 10,
        in_flight: int = 16,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(timeout_s, connect=10, pool=None)
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._tries = tries
        self._in_flight = in_flight

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def info(self) -> dict[str, Any]:
        """What `/info` says: model, fingerprint, preprocessing, device, limits."""
        found: dict[str, Any] = (await self._send(self._http.build_request("GET", "info"))).json()
        return found

    async def classify(self, image: Image, *, top_k: int = 5, bulk: bool = False) -> Classification:
        """The `top_k` most likely classes. Raises ServerError, OSError for a file that cannot be read."""
        body = (await self._post("v1/classify", image, {"top_k": top_k}, bulk)).json()
        found = body["results"][0]["predictions"]
        predictions = (Prediction(one["index"], one["label"], one["score"]) for one in found)
        return Classification(tuple(predictions), body["model"]["fingerprint"])

    async def embed(
        self, image: Image, *, pooling: Pooling = "cls", normalize: bool = True, bulk: bool = False
    ) -> Vector:
        """The embedding, float32 (D,). Raises as `classify`."""
        options = {"pooling": pooling, "normalize": str(normalize).lower()}
        answer = await self._post("v1/embed", image, options, bulk, accept="application/octet-stream")
        return np.frombuffer(answer.content, "<f4").astype(np.float32)

    def classify_many(
        self, images: Iterable[Image], *, top_k: int = 5
    ) -> AsyncGenerator[Classification | ServerError | OSError, None]:
        """In order, an error in the place of an image that has no answer; in the bulk class."""
        return self._many(self.classify(image, top_k=top_k, bulk=True) for image in images)

    def embed_many(
        self, images: Iterable[Image], *, pooling: Pooling = "cls", normalize: bool = True
    ) -> AsyncGenerator[Vector | ServerError | OSError, None]:
        """As `classify_many`."""
        return self._many(self.embed(image, pooling=pooling, normalize=normalize, bulk=True) for image in images)

    async def embed_folder(self, folder: str | Path, out: str | Path, *, progress: bool = True) -> int:
        """Embed the images below `folder`; returns how many could be.

        Writes `OUT.npy` (float32, N x D) and `OUT.jsonl`: a line for each image in the order of the paths, with its
        row or its error. Holds the vectors in memory, the images not.
        """
        paths = find_images(folder)
        rows: list[Vector] = []
        lines: list[str] = []
        async with aclosing(self.embed_many(paths)) as answers:
            async for path, answer in _beside(_bar(paths, progress), answers):
                lines.append(json.dumps({"path": str(path)} | _line(answer, len(rows))) + "\n")
                if isinstance(answer, np.ndarray):
                    rows.append(answer)
        await asyncio.to_thread(_write, Path(out), rows, lines)
        return len(rows)

    async def _many(self, calls: Iterator[Coroutine[Any, Any, T]]) -> AsyncGenerator[T | ServerError | OSError, None]:
        """Results in order, so many calls at once; the next image is not even looked at before there is room."""
        under_way: deque[asyncio.Task[T]] = deque()
        try:
            for call in calls:
                under_way.append(asyncio.create_task(call))
                if len(under_way) >= self._in_flight:
                    yield await _settled(under_way.popleft())
            while under_way:
                yield await _settled(under_way.popleft())
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _post(
        self, path: str, image: Image, options: dict[str, Any], bulk: bool, accept: str = "application/json"
    ) -> httpx.Response:
        body = await asyncio.to_thread(encoded, image)
        headers = {"Accept": accept, "Content-Type": "application/octet-stream"}
        headers |= {"X-Request-Class": "bulk"} if bulk else {}
        return await self._send(self._http.build_request("POST", path, params=options, content=body, headers=headers))

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """The answer; raises ServerError with the last one that was none."""
        for attempt in range(self._tries):
            last = attempt + 1 == self._tries
            try:
                answer = await self._http.send(request)
            except httpx.TransportError as error:
                if last or attempt + 1 >= _LOST_TRIES:
                    raise ServerError(0, "unreachable", f"no answer from {request.url}: {error!r}") from error
                await asyncio.sleep(wait_s(attempt, None))
                continue
            if answer.is_success:
                return answer
            if last or answer.status_code not in BUSY:
                raise _problem(answer)
            await asyncio.sleep(wait_s(attempt, answer.headers.get("Retry-After")))
        raise ValueError("tries must be at least 1")


class Client:
    """`AsyncClient` for programs without asyncio: the same methods, `..._many` as plain iterators."""

    def __init__(self, url: str, **options: Any) -> None:
        self._starting: AbstractContextManager[Any] = anyio.from_thread.start_blocking_portal()
        self._portal = self._starting.__enter__()
        self._client: AsyncClient = self._portal.call(lambda: AsyncClient(url, **options))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.call(self._client.close)
        self._starting.__exit__(kind, error, trace)

    def close(self) -> None:
        """Close the connections and end the thread."""
        self.__exit__(None, None, None)

    def info(self) -> dict[str, Any]:
        """See `AsyncClient.info`."""
        return self._portal.call(self._client.info)

    def classify(self, image: Image, *, top_k: int = 5, bulk: bool = False) -> Classification:
        """See `AsyncClient.classify`."""
        return self._portal.call(lambda: self._client.classify(image, top_k=top_k, bulk=bulk))

    def embed(self, image: Image, *, pooling: Pooling = "cls", normalize: bool = True, bulk: bool = False) -> Vector:
        """See `AsyncClient.embed`."""
        return self._portal.call(lambda: self._client.embed(image, pooling=pooling, normalize=normalize, bulk=bulk))

    def classify_many(
        self, images: Iterable[Image], *, top_k: int = 5
    ) -> Iterator[Classification | ServerError | OSError]:
        """See `AsyncClient.classify_many`."""
        return self._each(self._client.classify_many(images, top_k=top_k))

    def embed_many(
        self, images: Iterable[Image], *, pooling: Pooling = "cls", normalize: bool = True
    ) -> Iterator[Vector | ServerError | OSError]:
        """See `AsyncClient.embed_many`."""
        return self._each(self._client.embed_many(images, pooling=pooling, normalize=normalize))

    def embed_folder(self, folder: str | Path, out: str | Path, *, progress: bool = True) -> int:
        """See `AsyncClient.embed_folder`."""
        return self._portal.call(lambda: self._client.embed_folder(folder, out, progress=progress))

    def _each(self, answers: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while True:
                yield self._portal.call(answers.__anext__)
        except StopAsyncIteration:
            return
        finally:
            self._portal.call(answers.aclose)


def encoded(image: Image) -> bytes:
    """The bytes of an image file. Raises OSError, or TypeError for what is no image."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError(f"pixels must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
        import PIL.Image

        image = PIL.Image.fromarray(image)
    if not hasattr(image, "save"):
        raise TypeError(f"an image is a path, bytes, a PIL image or an array, not {type(image).__name__}")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def find_images(folder: str | Path) -> list[Path]:
    """The images below a folder by their names' endings, sorted by path; hidden files and folders are passed over."""
    found = (path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def wait_s(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next try: at least what the server asks for, longer every time, never too long."""
    return min(LONGEST_WAIT_S, max(math.ldexp(FIRST_WAIT_S, attempt), _seconds(retry_after)))


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After header (RFC 9110: seconds or a date); 0 when there is none that can be read."""
    if not retry_after:
        return 0.0
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def _problem(answer: httpx.Response) -> ServerError:
    try:
        body = answer.json()
    except ValueError:
        body = {}
    known: dict[str, Any] = body if isinstance(body, dict) else {}
    detail = str(known.get("detail") or answer.reason_phrase)
    code = str(known.get("code") or "unknown")
    return ServerError(answer.status_code, code, detail, answer.headers.get("X-Request-ID", ""))


async def _settled(task: asyncio.Task[T]) -> T | ServerError | OSError:
    try:
        return await task
    except (ServerError, OSError) as error:
        return error


async def _beside(first: Iterable[Path], second: AsyncIterator[T]) -> AsyncIterator[tuple[Path, T]]:
    for one in first:
        yield one, await anext(second)


def _bar(paths: list[Path], progress: bool) -> Iterable[Path]:
    if not progress:
        return paths
    from tqdm import tqdm

    bar: Iterable[Path] = tqdm(paths, unit="image")
    return bar


def _write(out: Path, rows: list[Vector], lines: list[str]) -> None:
    np.save(f"{out}.npy", np.stack(rows) if rows else np.empty((0, 0), np.float32))
    Path(f"{out}.jsonl").write_text("".join(lines), encoding="utf-8")


def _line(answer: Vector | ServerError | OSError, row: int) -> dict[str, Any]:
    return {"row": row} if isinstance(answer, np.ndarray) else {"error": str(answer)}
