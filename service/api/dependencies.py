"""Helpers that all contracts share: find the engine, the model and its heads, run work in threads, run images.

Limits, deadlines, batching, disconnects and errors are therefore the same for every contract.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.api.record import API, KEY, RequestRecord
from service.api.request.links import Links
from service.api.schemas import ClassesOptions
from service.engine.engine import Answer, Engine
from service.engine.models import Wanted, described
from service.errors import InvalidOptions, ServiceError, UnsupportedInput
from service.heads import scoring, store
from service.heads.store import Heads, NamedHead
from service.jobs import Given, Task
from service.status import ModelInfo, ModelState

T = TypeVar("T")


def engine_of(request: Request) -> Engine:
    """The application's engine."""
    engine: Engine = request.app.state.engine
    return engine


def links_of(request: Request) -> Links:
    """The object that fetches the links of requests."""
    links: Links = request.app.state.links
    return links


def heads_of(request: Request) -> Heads:
    """The custom heads of the server."""
    heads: Heads = request.app.state.heads
    return heads


async def find(request: Request, name: str | None, version: str | None = None) -> ModelState:
    """The state of a model, or of NAME~HEAD, whose description is that of the head.

    Raises UnknownModel, UnknownHead, InvalidHead, HeadMismatch.
    """
    model, head = (None, None) if name is None else store.split(name)
    state = engine_of(request).find(Wanted(model, version))
    if head is None or state.model is None:
        return state
    return dataclasses.replace(state, model=scoring.described(await heads_of(request).get(head), state.model))


def choose(request: Request, task: Task, name: str | None = None, version: str | None = None) -> ModelState:
    """Use the model that the request names, or the default one, until the request has ended, even over a reload.

    NAME~HEAD chooses a custom head too. Called again, it changes the model only if another name is given. Raises what
    `Engine.check` raises, and UnknownHead.
    """
    record: RequestRecord = request.scope[KEY]
    engine = engine_of(request)
    if name is not None:
        name, head = store.split(name)
        if head is not None:
            choose_heads(request, [head])
    task = _by_heads(record, task)
    state = record.model
    if state is None or name not in (None, state.id.name):
        state = engine.find(Wanted(name, version))
        engine.check(task, state)
        _hold(engine, record, state)
    else:
        engine.check(task, state)
    return state


def choose_early(request: Request, task: Task) -> None:
    """Use the default model until the body is read. The body may name another one; then call `choose` again.

    Raises the error of the default model if no model can serve the task now.
    """
    try:
        choose(request, task)
    except ServiceError:
        engine_of(request).check_any(task)


def choose_heads(request: Request, names: Sequence[str]) -> None:
    """Classify by these custom heads instead of the model's own. Raises UnknownHead, InvalidOptions."""
    record: RequestRecord = request.scope[KEY]
    if not names:
        return
    if record.heads not in ((), tuple(names)):
        raise InvalidOptions("give heads either by head= or in the name of the model, not both")
    for name in names:
        heads_of(request).check(name)
    record.heads = tuple(names)


def _by_heads(record: RequestRecord, task: Task) -> Task:
    return task._replace(heads=True) if record.heads and task.op == "classify" else task


def _hold(engine: Engine, record: RequestRecord, state: ModelState) -> None:
    """Hold the model; the middleware releases it."""
    engine.backend.hold(state.id.key)
    if record.model is not None:
        engine.backend.release(record.model.id.key)
    record.model = state
    if record.body is not None:
        record.body.move(state.id.number)
    engine.metrics.model(state.id.name)  # so that this request counts for it, however it ends


def model_of(request: Request) -> ModelInfo:
    """The model of the request; the default one before `choose`. Raises NotReady before it is loaded."""
    record: RequestRecord = request.scope[KEY]
    return described(record.model or engine_of(request).find())


def model_headers(model: ModelInfo) -> dict[str, str]:
    """Headers that identify the model, for contracts whose bodies do not."""
    return {"X-Model-Name": model.name, "X-Model-Fingerprint": model.fingerprint}


async def in_thread(request: Request, work: Callable[..., T], *arguments: Any) -> T:
    """Run blocking work, such as parsing a body, in a decoding thread, with the priority of its request class."""
    record: RequestRecord = request.scope[KEY]
    return await engine_of(request).decode_pool.run(record.request_class or "interactive", work, *arguments)


async def infer(request: Request, images: Sequence[Given], task: Task, timeout_s: float | None = None) -> Answer:
    """Fetch the links among the images, and run all. The body has been read. NAME~HEAD answers as a model of its own.

    `timeout_s` is the time limit in the request's body, if the contract has one; the shortest limit counts. Raises
    ServiceError for the whole request, ClientDisconnect when the client disconnects.
    """
    record: RequestRecord = request.scope[KEY]
    task = _by_heads(record, task)
    heads = await _read_heads(request) if task.heads else []
    answer = await run(request, images, task, timeout_s)
    return scoring.answered(answer, heads[0], embedding_too=task.embedding_too) if heads else answer


async def classify_task(request: Request, task: Task, options: ClassesOptions) -> tuple[Task, list[NamedHead]]:
    """The task of a native classification, and its heads as they are now. The model has been chosen.

    Raises UnknownHead, InvalidHead, HeadMismatch; UnsupportedInput if `reject` is given and `in_domain` is not known.
    """
    record: RequestRecord = request.scope[KEY]
    model = model_of(request)
    task = _by_heads(record, task)
    heads = await _read_heads(request) if task.heads else []
    known = [one.head.domain is not None for one in heads] if heads else [model.in_domain]
    if options.reject is not None and not all(known):
        what = f"the head {heads[known.index(False)].name!r}" if heads else "this model"
        raise UnsupportedInput(f"reject needs in_domain, which {what} does not have")
    return task._replace(in_domain=model.in_domain and not heads), heads


async def _read_heads(request: Request) -> list[NamedHead]:
    """The heads of the request as they are now. Raises UnknownHead, InvalidHead, HeadMismatch."""
    record: RequestRecord = request.scope[KEY]
    model = model_of(request)
    heads = [await heads_of(request).get(name) for name in record.heads]
    for one in heads:
        scoring.check(one, model)
    return heads


async def run(request: Request, images: Sequence[Given], task: Task, timeout_s: float | None = None) -> Answer:
    """Run the task as it is. Arguments and errors are those of `infer`."""
    record: RequestRecord = request.scope[KEY]
    longest_s = allowed_s(request)
    deadline = record.started + min(longest_s, timeout_s or longest_s)
    answer = await _cancel_on_disconnect(request, _run(request, images, task, deadline))
    record.timings = answer.timings
    record.images, record.failed_images = len(images), answer.failed
    return answer


async def _run(request: Request, images: Sequence[Given], task: Task, deadline: float) -> Answer:
    engine, links = engine_of(request), links_of(request)
    record: RequestRecord = request.scope[KEY]
    assert record.body is not None  # of the body that has been read
    state = record.model or engine.find()
    items = await links.images(images, task, state, deadline, record.body, record.request_id)
    return await engine.infer(items, task, deadline, record.request_class or "interactive", state)


def allowed_s(request: Request) -> float:
    """The time limit in seconds: `X-Request-Timeout-Ms`, at most VIM_REQUEST_TIMEOUT_MS. Raises InvalidOptions."""
    record: RequestRecord = request.scope[KEY]
    longest_ms = engine_of(request).settings.request_timeout_ms
    given = record.headers.get("x-request-timeout-ms")
    if given is None:
        return longest_ms / 1000
    if not given.isascii() or not given.isdigit() or int(given[:12]) < 1:
        raise InvalidOptions(
            f"X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1; got {given[:40]!r}"
        )
    return min(int(given[:12]), longest_ms) / 1000


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await the work. When the client disconnects first, cancel the work and raise ClientDisconnect.

    Call this only after the body has been read, because it consumes the request's messages.
    """
    if API in request.scope:  # a call within the process: when it ends, it cancels this task
        return await work
    serving = asyncio.current_task()
    assert serving is not None
    watch = asyncio.create_task(_watch_disconnect(request, serving))
    try:
        return await work
    except asyncio.CancelledError:
        if not watch.done():  # something else cancelled this task
            raise
        serving.uncancel()
        raise ClientDisconnect from None
    finally:
        watch.cancel()


async def _watch_disconnect(request: Request, serving: asyncio.Task[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    serving.cancel()
