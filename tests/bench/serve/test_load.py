"""The load generator sends requests when they are due, with images that all differ, and counts every loss."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from bench.serve.load import TIMED_OUT, Load, Records, due_times, form, run
from bench.serve.wire import LOST
from tests.bench.serve.servers import OK, Answer, Scripted, scripted

REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n2;x=y\r\n }\r\n0\r\n\r\n"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A load of two clients with three requests each, of one tiny photograph."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "0.jpg").write_bytes(b"photograph")
    return Load(0, "/classify", str(tmp_path), {"small": 1.0}, seconds=30, clients=2, most=3, warm_s=0)


def sent(load: Load, answer: Answer, delay_s: float = 0.0) -> tuple[Records, Scripted]:
    """The records of a load on a scripted server, and the requests that it received."""

    async def both() -> tuple[Records, Scripted]:
        async with scripted(answer, delay_s) as server:
            return await run(replace(load, port=server.port)), server

    return asyncio.run(both())


def test_a_closed_loop_sends_the_next_when_it_has_an_answer(load: Load) -> None:
    """A closed loop sends as many requests as each client may, with images that differ in their last bytes."""
    records, server = sent(load, lambda _: OK)

    assert [200] * 6 == records.status
    assert 6 == len(set(server.bodies))
    assert {b"photograph"} == {body[:-8] for body in server.bodies}
    assert "{}" == records.body
    assert all(end >= due for due, end in zip(records.due, records.end, strict=True))


def test_every_status_is_kept(load: Load) -> None:
    """Every status is recorded, also of refusals that close the connection; the next request opens a new one."""
    records, _ = sent(replace(load, clients=1), lambda number: REFUSAL if number == 2 else OK)

    assert [200, 429, 200] == records.status


def test_an_answer_in_chunks_is_an_answer(load: Load) -> None:
    """An answer in chunks, without a length, is read."""
    records, _ = sent(load, lambda _: CHUNKED)

    assert ([200] * 6, "{ }") == (records.status, records.body)


def test_a_connection_that_ends_is_a_loss(load: Load) -> None:
    """A connection that ends without an answer counts as a loss."""
    records, _ = sent(replace(load, clients=1), lambda number: None if number == 1 else OK)

    assert [LOST, 200, 200] == records.status


def test_nobody_listens(load: Load) -> None:
    """A refused connection counts as a loss."""
    assert {LOST} == set(asyncio.run(run(replace(load, port=1))).status)


def test_a_client_has_so_much_patience(load: Load) -> None:
    """An answer after the client's patience counts as a loss."""
    records, _ = sent(replace(load, clients=1, most=1, patience_s=0.05), lambda _: OK, delay_s=5)

    assert [TIMED_OUT] == records.status


def test_images_side_by_side_make_one_request(load: Load) -> None:
    """Images side by side count as one request, with the worst of their statuses."""
    many = replace(load, clients=1, most=1, images=4)
    records, server = sent(many, lambda _: OK)

    assert ([200], 4) == (records.status, len(server.bodies))
    assert [429] == sent(many, lambda number: REFUSAL if number == 3 else OK)[0].status


def test_images_in_a_form(load: Load) -> None:
    """Each image of a form is a file of its own, and the Content-Length is right."""
    records, server = sent(replace(load, clients=1, most=1, images=3, form=True), lambda _: OK)

    assert [200] == records.status
    assert 3 == server.bodies[0].count(b'filename="image.jpg"')
    assert "multipart/form-data" in server.heads[0]


def test_a_form_ends_as_forms_end() -> None:
    """A form ends with a boundary that has two more hyphens."""
    head, *parts = form("/x", [(b"a", b"1"), (b"b", b"2")])
    body = b"".join(parts)

    assert f"Content-Length: {len(body)}".encode() in head
    assert body.endswith(b"--\r\n")


@pytest.mark.parametrize("form", [False, True])
def test_what_a_request_allows_is_in_its_header(load: Load, form: bool) -> None:
    """The time that a request allows is in its header, if there is one."""
    _, told = sent(replace(load, clients=1, most=1, form=form, says_ms=100), lambda _: OK)
    _, silent = sent(replace(load, clients=1, most=1, form=form), lambda _: OK)

    assert "X-Request-Timeout-Ms: 100\r\n" in told.heads[0]
    assert "Timeout" not in silent.heads[0]


def test_an_open_loop_keeps_its_times(load: Load) -> None:
    """An open loop is a Poisson process of the given rate, and equal for equal seeds."""
    open_loop = replace(load, clients=0, rate=200.0, seconds=50.0)
    times = list(due_times(open_loop))

    assert 10_000 == pytest.approx(len(times), rel=0.05)
    assert times == sorted(times) == list(due_times(open_loop))
    assert times != list(due_times(replace(open_loop, seed=1)))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert 1 / 200 == pytest.approx((sum(gap * gap for gap in gaps) / len(gaps) / 2) ** 0.5, rel=0.1)


def test_bursts_come_all_at_once(load: Load) -> None:
    """Requests of a burst are due at the same time, and bursts keep the mean rate."""
    times = list(due_times(replace(load, clients=0, rate=64.0, burst=16, seconds=1.0)))

    assert [0.25] * 16 + [0.5] * 16 + [0.75] * 16 == times


def test_an_open_loop_does_not_wait_for_answers(load: Load) -> None:
    """An open loop does not wait for answers, and its latencies count from when a request was due."""
    records, server = sent(replace(load, clients=0, rate=200.0, seconds=0.2), lambda _: OK, delay_s=0.5)

    assert len(records.status) == len(server.bodies) > 10
    assert all(end - due >= 0.5 for due, end in zip(records.due, records.end, strict=True))
