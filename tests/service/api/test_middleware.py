"""Every request has an id, a log line without contents, and its stages in a header."""

from __future__ import annotations

import logging

import httpx
import pytest
from starlette.datastructures import Headers

from service.api.middleware import request_id, server_timing, trace_id
from service.jobs import Timings
from tests.tiny import photo

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_well_formed_id_is_kept_and_any_other_replaced() -> None:
    """A well-formed X-Request-ID is kept; any other is replaced, so that it cannot forge log lines."""
    assert "a.B-1_" == request_id(Headers({"x-request-id": "a.B-1_"}))
    for bad in ("", "a b", "x" * 129, 'a"b'):
        made = request_id(Headers({"x-request-id": bad}))
        assert made != bad
        assert 32 == len(made)


def test_the_trace_id_of_a_traceparent_is_found() -> None:
    """The trace id is taken from a valid `traceparent` header only."""
    assert TRACE == trace_id(Headers({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}))
    assert trace_id(Headers({"traceparent": "00-zz-b7ad6b7169203331-01"})) is None
    assert trace_id(Headers({})) is None


def test_the_trace_id_that_hugging_face_sends_is_taken_too() -> None:
    """A trace id in Amazon's header is used if there is no `traceparent`."""
    amazon = {"x-amzn-trace-id": "0af76519-16cd-43dd-8448-eb211c80319c"}

    assert amazon["x-amzn-trace-id"] == trace_id(Headers(amazon))
    assert TRACE == trace_id(Headers(amazon | {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}))
    assert trace_id(Headers({"x-amzn-trace-id": 'a"b'})) is None


def test_server_timing_is_in_milliseconds() -> None:
    """The Server-Timing header has milliseconds by stage and the batch size."""
    header = server_timing(Timings(0.002, 0.001, 0.0005, 0.02, 0.024, 8))

    assert 'decode;dur=2, preprocess;dur=1, queue;dur=0.5, infer;dur=20, total;dur=24, batch;desc="8"' == header


@pytest.mark.anyio
async def test_a_path_forges_no_line_of_the_log(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """A line break in a path does not start a new line in the log."""
    with caplog.at_level(logging.INFO):
        await client.post("/v2/models/a%0A12:00:00 info forged%E2%80%AE/infer")

    assert [message for message in caplog.messages if message.startswith("/v2/models/a%0A12%3A00%3A00%20info%20forged")]
    assert not [message for message in caplog.messages if "\n" in message or not message.isascii()]


@pytest.mark.anyio
async def test_one_log_line_a_request_with_sizes_stages_and_outcome(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Each image request has one log line with sizes, stages and outcome but no contents; probes have none."""
    with caplog.at_level(logging.INFO, "vim.request"):
        headers = {"X-Request-ID": "good", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        await client.post("/v1/classify", content=photo(), headers=headers)
        await client.post("/v1/embed", content=b"secret bytes", headers={"X-Request-ID": "bad"})
        await client.get("/livez")
    good, bad = (vars(record)["fields"] for record in caplog.records if record.name == "vim.request")

    assert {
        "request_id": "good",
        "trace_id": TRACE,
        "op": "classify",
        "status": 200,
        "outcome": "ok",
    }.items() <= good.items()
    assert {"bytes": len(photo()), "images": 1, "failed_images": 0}.items() <= good.items()
    assert {"ms", "decode_ms", "preprocess_ms", "queue_ms", "infer_ms", "batch_size"} <= good.keys()
    assert {"request_id": "bad", "status": 415, "outcome": "unsupported_image"}.items() <= bad.items()
    assert "secret" not in caplog.text
