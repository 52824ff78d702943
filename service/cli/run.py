"""Run classify, embed and info: send files to a backend, several at once, and pass the answers on in order."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field

from service.cli.backend import Ask, Backend, CommandError, Failed, Model, Outcome
from service.cli.files import File, read, refusal
from service.cli.output import Sink, as_tree
from service.cli.terminal import Progress
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Source:
    """Where to get answers: from a server at a URL, or from a model that is loaded with these settings."""

    url: str | None
    settings: Settings | None
    batch: int | None = None
    key: str = field(default="", repr=False)
    model: str | None = None  # of the server; the settings are already those of one model
    admin_key: str = field(default="", repr=False)  # for `send_head`

    def connect(self, images: int) -> AbstractAsyncContextManager[Backend]:
        """Open a backend for a number of images; 0 when only its `info` is needed."""
        if self.url is not None:
            from service.cli.remote import remote

            return remote(self.url, self.batch, self.key, self.model)
        assert self.settings is not None
        from service.cli.local import local, settings_for

        return local(settings_for(self.settings, images, self.batch))

    async def send_head(self, name: str, data: bytes) -> str | None:
        """Send a custom head to the server; returns its address there, or None without a server or a key for it."""
        if self.url is None or not self.admin_key:
            return None
        from service.cli.remote import send_head

        return await send_head(self.url, self.admin_key, name, data)

    def __str__(self) -> str:
        return f"asking {self.url}" if self.settings is None else f"loading {self.settings.served_name}"


async def answer(source: Source, files: Sequence[File], ask: Ask, sink: Sink, progress: Progress) -> int:
    """Answer every file; returns the exit status. Answers before a CommandError are kept."""
    if source.url is None and (refused := _all_refused(files)):
        for file, outcome in zip(files, refused, strict=True):  # before the model is loaded
            _take(file, outcome, sink, progress)
        sink.finish()
        return 1
    progress.busy(f"{source} ...")
    async with source.connect(len(files)) as backend:
        _check(backend, ask)
        progress.begin()
        stopped = await _feed(backend, files, ask, sink, progress)
        sink.finish()
        if stopped is not None:
            progress.note(f"stopped after {progress.done} of {len(files)}: {stopped}")
        elif progress.on_terminal or progress.failed:
            progress.note(summary(progress, Model.of(backend.info["model"])))
    return 1 if stopped or progress.failed else 0


def _all_refused(files: Sequence[File]) -> list[Failed]:
    """The errors of all files; empty if at least one file may be an image."""
    refused: list[Failed] = []
    for file in files:
        if (failed := refusal(file)) is None:
            return []
        refused.append(failed)
    return refused


async def _feed(
    backend: Backend, files: Sequence[File], ask: Ask, sink: Sink, progress: Progress
) -> CommandError | None:
    """Pass every answer to the sink; returns the error that ended it early."""
    try:
        async with aclosing(_answers(backend, files, ask)) as answers:
            async for file, outcome in answers:
                _take(file, outcome, sink, progress)
    except CommandError as error:
        return error
    return None


async def describe(source: Source, write: Callable[[str], None], progress: Progress, *, as_json: bool) -> int:
    """Print the content of `/info`."""
    progress.busy(f"{source} ...")
    async with source.connect(0) as backend:
        info = backend.info
    write(json.dumps(info) if as_json else "\n".join(as_tree(info)))
    return 0


def _check(backend: Backend, ask: Ask) -> None:
    if ask.op == "classify" and not backend.info["model"].get("classes"):
        raise CommandError("this model has no classifier head; it can only embed")


def _take(file: File, outcome: Outcome, sink: Sink, progress: Progress) -> None:
    if isinstance(outcome, Failed):
        progress.note(f"{file.name}: {outcome.message}")
    sink.add(file.name, outcome)
    progress.step(failed=isinstance(outcome, Failed))


async def _answers(backend: Backend, files: Sequence[File], ask: Ask) -> AsyncGenerator[tuple[File, Outcome], None]:
    """Yield answers in the order of the files, with at most `in_flight` files in memory."""
    in_flight: deque[tuple[File, asyncio.Task[Outcome]]] = deque()
    try:
        for file in files:
            if len(in_flight) >= backend.in_flight:
                yield await _oldest(in_flight)
            in_flight.append((file, asyncio.create_task(_one(backend, file, ask))))
        while in_flight:
            yield await _oldest(in_flight)
    finally:
        for _, task in in_flight:
            task.cancel()
        await asyncio.gather(*(task for _, task in in_flight), return_exceptions=True)


async def _oldest(in_flight: deque[tuple[File, asyncio.Task[Outcome]]]) -> tuple[File, Outcome]:
    file, task = in_flight[0]
    outcome = await task
    in_flight.popleft()
    return file, outcome


async def _one(backend: Backend, file: File, ask: Ask) -> Outcome:
    data = await asyncio.to_thread(read, file, backend.max_bytes)
    return data if isinstance(data, Failed) else await backend.infer(data, ask)


def summary(progress: Progress, model: Model) -> str:
    """The last line: what was answered, and how fast."""
    good = progress.done - progress.failed
    rate = f" ({good / max(progress.seconds, 1e-9):.1f} images/s)" if good else ""
    failed = f", {progress.failed} failed" if progress.failed else ""
    return f"{good} of {progress.done} images by {model}{failed}, {progress.seconds:.1f} s{rate}"
