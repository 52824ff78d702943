"""A client of the Vision Mamba server: synchronous (`Client`) and asynchronous (`AsyncClient`).

    from vim_client import Client

    with Client("http://localhost:8000") as client:
        print(client.classify("photo.jpg").predictions[0].label)
        vectors = np.stack(list(client.embed_many(paths)))

Install it with `pip install ./client`. An image is a path, the bytes of a file, a PIL image, or a numpy array of RGB
pixels: uint8 (H, W, 3). The client repeats a request that the server refuses as busy (429) or not ready (503): a
limited number of times, and not before its `Retry-After`. It sends many images to /v1/bulk in groups, several groups
at once. It uses groups because httpx reads no response before it has sent the whole request.

httpx and numpy are required. Pillow is needed for numpy pixels, tqdm for the progress bar of `embed_folder`.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

import anyio.from_thread
import httpx
import numpy as np

from vim_client import folder_files
from vim_client.answers import Classification, Vector, classification, first, json_object, raw_vector, vector
from vim_client.http import ClientError, Item, ServerError, Wire
from vim_client.images import Image, encoded, find_images
from vim_client.options import (
    ClassifyManyOptions,
    ClassifyOptions,
    Crop,
    EmbedManyOptions,
    EmbedOptions,
    FolderOptions,
    Heads,
    InfoOptions,
    Pooling,
    newer,
)

T = TypeVar("T")

SMALL_BYTES = 400_000  # a larger image has a request of its own: base64 would cost more than the request


@dataclass(frozen=True, slots=True)
class _Wish(Generic[T]):
    """What to ask for each of many images: the options of a group, how to read a line of its response, and the request
    for a single image.
    """

    options: Mapping[str, Any]
    read: Callable[[Item], T]
    alone: Callable[[bytes], Awaitable[T]]


class AsyncClient:
    """The client for asyncio.

    The methods `..._many` keep at most `in_flight` images in memory and send `group` of them in one request (1: a
    request for each image). `transport` is a transport of httpx, for proxies and tests.

    `model` is the name of the model for all requests, if the server has several; each method takes another. Without a
    name the server uses its default model. An unknown name is a ServerError: 404, `model_not_found`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 120,
        tries: int = 10,
        in_flight: int = 32,
        group: int = 8,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if min(tries, in_flight, group) < 1:
            raise ValueError("tries, in_flight and group must be at least 1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(timeout_s, connect=10, pool=None)
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._wire = Wire(self._http, tries)
        self._model = model
        self._group = min(group, in_flight)
        self._groups = in_flight // self._group

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def info(self, *, model: str | None = None) -> dict[str, Any]:
        """The response of `/info`: model, fingerprint, preprocessing, device, limits, and the names of all models."""
        request = self._http.build_request("GET", "info", params=self._newer(model))
        return await self._wire.read(request, json_object)

    async def classify(
        self,
        image: Image,
        *,
        top_k: int = 5,
        crop: Crop = "center",
        model: str | None = None,
        head: Heads = None,
        bulk: bool = False,
    ) -> Classification:
        """The `top_k` most likely classes, by the model, or by one or several custom heads of the server.

        Raises ClientError: ServerError, or ImageError for an unreadable file.
        """
        request = await self._request("v1/classify", image, {"top_k": top_k} | self._newer(model, crop, head), bulk)
        return await self._wire.read(request, first)

    async def embed(
        self,
        image: Image,
        *,
        pooling: Pooling = "cls",
        normalize: bool = True,
        crop: Crop = "center",
        model: str | None = None,
        bulk: bool = False,
    ) -> Vector:
        """The embedding, float32 (D,). Raises as `classify`."""
        options = {"pooling": pooling, "normalize": str(normalize).lower()} | self._newer(model, crop)
        request = await self._request("v1/embed", image, options, bulk, accept="application/octet-stream")
        return await self._wire.read(request, raw_vector)

    def classify_many(
        self,
        images: Iterable[Image],
        *,
        top_k: int = 5,
        crop: Crop = "center",
        model: str | None = None,
        head: Heads = None,
    ) -> AsyncGenerator[Classification | ClientError, None]:
        """Yield one answer for each image, in order; an error takes the place of an answer. Requests are bulk."""
        alone = functools.partial(self.classify, top_k=top_k, crop=crop, model=model, head=head, bulk=True)
        options = {"op": "classify", "top_k": top_k} | self._newer(model, crop, head)
        return self._many(images, _Wish(options, classification, alone))

    def embed_many(
        self,
        images: Iterable[Image],
        *,
        pooling: Pooling = "cls",
        normalize: bool = True,
        crop: Crop = "center",
        model: str | None = None,
    ) -> AsyncGenerator[Vector | ClientError, None]:
        """Yield one embedding for each image, in order; an error takes the place of an embedding. Requests are bulk."""
        options = {"op": "embed", "pooling": pooling, "normalize": str(normalize).lower(), "encoding": "base64"}
        options |= self._newer(model, crop)
        alone = functools.partial(self.embed, pooling=pooling, normalize=normalize, crop=crop, model=model, bulk=True)
        return self._many(images, _Wish(options, vector, alone))

    async def embed_folder(
        self, folder: str | Path, out: str | Path, *, model: str | None = None, progress: bool = True
    ) -> int:
        """Embed the images below `folder`; returns the number of embeddings.

        `out` is OUT or OUT.npy. Writes `OUT.npy` (float32, N x D) and `OUT.jsonl`: a line for each image in the order
        of the paths, with its row or its error. All embeddings are in memory at once, the images are not.
        """
        paths = find_images(folder)
        rows: list[Vector] = []
        lines: list[str] = []
        async with aclosing(self.embed_many(paths, model=model)) as answers:
            async for path, answer in _beside(folder_files.bar(paths, progress), answers):
                lines.append(folder_files.line(path, answer, len(rows)))
                if isinstance(answer, np.ndarray):
                    rows.append(answer)
        await asyncio.to_thread(folder_files.write, Path(out), rows, lines)
        return len(rows)

    async def _many(self, images: Iterable[Image], wish: _Wish[T]) -> AsyncGenerator[T | ClientError, None]:
        """Yield the answers in order. Takes the next images only when fewer than the allowed groups are in flight."""
        rest = iter(images)
        under_way: deque[asyncio.Task[list[T | ClientError]]] = deque()
        try:
            while True:
                while len(under_way) < self._groups and (group := list(itertools.islice(rest, self._group))):
                    under_way.append(asyncio.create_task(self._answers(group, wish)))
                if not under_way:
                    return
                for answer in await under_way.popleft():
                    yield answer
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _answers(self, group: list[Image], wish: _Wish[T]) -> list[T | ClientError]:
        """One answer for each image of a group. Small images share a request, a large one has its own."""
        found = await asyncio.gather(*(_settled(asyncio.to_thread(encoded, image)) for image in group))
        bodies = {number: body for number, body in enumerate(found) if isinstance(body, bytes)}
        small = {number: body for number, body in bodies.items() if len(body) <= SMALL_BYTES and len(bodies) > 1}
        large = {number: body for number, body in bodies.items() if number not in small}
        together, singly = await asyncio.gather(
            self._together([*small.values()], wish),
            asyncio.gather(*(_settled(wish.alone(body)) for body in large.values())),
        )
        errors = {number: one for number, one in enumerate(found) if not isinstance(one, bytes)}
        answers = errors | dict(zip([*small, *large], [*together, *singly], strict=True))
        return [answers[number] for number in range(len(group))]

    async def _together(self, bodies: list[bytes], wish: _Wish[T]) -> list[T | ServerError]:
        lines = await self._wire.together(bodies, wish.options)
        return [line if isinstance(line, ServerError) else wish.read(line) for line in lines]

    def _newer(self, model: str | None, crop: Crop = "center", head: Heads = None) -> dict[str, Any]:
        return newer(self._model if model is None else model, crop, head)

    async def _request(
        self, path: str, image: Image, options: dict[str, Any], bulk: bool, accept: str = "application/json"
    ) -> httpx.Request:
        body = await asyncio.to_thread(encoded, image)
        headers = {"Accept": accept, "Content-Type": "application/octet-stream"}
        headers |= {"X-Request-Class": "bulk"} if bulk else {}
        return self._http.build_request("POST", path, params=options, content=body, headers=headers)


class Client:
    """The client for programs without asyncio: the methods of `AsyncClient`; `..._many` return plain iterators."""

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

    def info(self, **options: Unpack[InfoOptions]) -> dict[str, Any]:
        """See `AsyncClient.info`."""
        return self._portal.call(lambda: self._client.info(**options))

    def classify(self, image: Image, **options: Unpack[ClassifyOptions]) -> Classification:
        """See `AsyncClient.classify`."""
        return self._portal.call(lambda: self._client.classify(image, **options))

    def embed(self, image: Image, **options: Unpack[EmbedOptions]) -> Vector:
        """See `AsyncClient.embed`."""
        return self._portal.call(lambda: self._client.embed(image, **options))

    def classify_many(
        self, images: Iterable[Image], **options: Unpack[ClassifyManyOptions]
    ) -> Iterator[Classification | ClientError]:
        """See `AsyncClient.classify_many`."""
        return self._each(self._client.classify_many(images, **options))

    def embed_many(
        self, images: Iterable[Image], **options: Unpack[EmbedManyOptions]
    ) -> Iterator[Vector | ClientError]:
        """See `AsyncClient.embed_many`."""
        return self._each(self._client.embed_many(images, **options))

    def embed_folder(self, folder: str | Path, out: str | Path, **options: Unpack[FolderOptions]) -> int:
        """See `AsyncClient.embed_folder`."""
        return self._portal.call(lambda: self._client.embed_folder(folder, out, **options))

    def _each(self, answers: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while True:
                yield self._portal.call(answers.__anext__)
        except StopAsyncIteration:
            return
        finally:
            self._portal.call(answers.aclose)


async def _settled(work: Awaitable[T]) -> T | ClientError:
    try:
        return await work
    except ClientError as error:
        return error


async def _beside(first: Iterable[Path], second: AsyncIterator[T]) -> AsyncIterator[tuple[Path, T]]:
    for one in first:
        yield one, await anext(second)
