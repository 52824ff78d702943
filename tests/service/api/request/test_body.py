"""Request bodies: every form of a body gives the same image bytes, and bad bodies get clear errors."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.requests import Request

from service.api.compat.huggingface import Parameters
from service.api.record import KEY, RequestRecord
from service.api.request import body as request_body
from service.api.request.json_body import load_texts
from service.api.schemas import BulkOptions, ClassifyOptions, EmbedOptions
from service.engine.admission import BodyAccount
from service.errors import (
    BodyTooLarge,
    EmptyBody,
    InvalidOptions,
    MalformedBody,
    ServiceError,
    TooManyImages,
    UnsupportedImage,
)
from service.jobs import Link
from tests.tiny import photo

PHOTO = photo()
TEXT = base64.b64encode(PHOTO).decode()
BOUNDARY = "multipart/form-data; boundary=cut"


def form(*parts: tuple[str, bytes]) -> bytes:
    """A multipart body of (Content-Disposition parameters, content)."""
    head = b"--cut\r\nContent-Disposition: form-data; "
    return b"".join(head + name.encode() + b"\r\n\r\n" + data + b"\r\n" for name, data in parts) + b"--cut--\r\n"


def body_of(content: Any) -> bytes:
    """A JSON body."""
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (PHOTO, "image/jpeg"),
        (PHOTO, "application/json"),
        (PHOTO, ""),
        (form(('name="f"; filename="a.jpg"', PHOTO)), BOUNDARY),
        (form(('name="image"', PHOTO)), 'Multipart/Form-Data; boundary="cut"'),
        (body_of({"images": [TEXT]}), "application/json"),
        (body_of({"images": [TEXT]}), "text/plain"),
        (b"\n " + body_of({"images": [f"data:image/jpeg;base64,{TEXT}"]}), ""),
        (b"\xef\xbb\xbf" + body_of({"images": [TEXT]}), "application/json"),
        (body_of({"images": ["\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76))]}), ""),
        (body_of({"images": [TEXT.rstrip("=").replace("+", "-").replace("/", "_")]}), ""),
    ],
)
def test_the_same_image_by_every_way(body: bytes, content_type: str) -> None:
    """Every form of a body, and every form of base64, gives the same image bytes."""
    assert [PHOTO] == request_body.parse(body, content_type, max_images=4).images


def test_order_and_options_of_a_form_are_kept() -> None:
    """In a form, files are images in their order, and other parts are options."""
    body = form(
        ('name="top_k"', b"3"),
        ('name="a"; filename="1"', PHOTO),
        ('name="a"; filename="2"', b"junk"),
        ('name="b"; filename="3"', PHOTO),
    )
    found = request_body.parse(body, BOUNDARY, max_images=4)

    assert [PHOTO, b"junk", PHOTO] == found.images
    assert {"top_k": "3"} == found.fields


def test_a_bad_item_is_an_error_in_its_place() -> None:
    """A bad image becomes an error in its place, the others are kept, and a URL becomes a link."""
    items = [TEXT, "not base64!", 7, "http://169.254.169.254/latest", "Größe", TEXT]
    found = request_body.parse(body_of({"images": items}), "", max_images=9).images
    kinds = [bytes, MalformedBody, MalformedBody, Link, MalformedBody, bytes]

    assert kinds == [type(item) for item in found]


def test_a_data_uri_is_looked_for_at_the_start_only() -> None:
    """A data URI is recognised at the start of a string only; a search would take minutes on a hostile text."""
    found = request_body.parse(body_of({"images": ["data:" * 1_000_000]}), "", max_images=1).images

    assert [MalformedBody] == [type(item) for item in found]


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        (b"hello", "", UnsupportedImage),
        (b"{", "", MalformedBody),
        (b'{"images": 1}', "", MalformedBody),
        (b'{"image": "x"}', "", MalformedBody),
        (b"[1]", "", MalformedBody),
        (b'{"images": []}', "", EmptyBody),
        (b"[" * 100_000, "", MalformedBody),
        (PHOTO, "multipart/form-data", MalformedBody),
        (PHOTO, BOUNDARY, MalformedBody),
        (form(('name="f"; filename="a"', PHOTO))[:-20], BOUNDARY, MalformedBody),
        (form(('name="top_k"', b"3")), BOUNDARY, EmptyBody),
        (form(*[('name="f"; filename="a"', PHOTO)] * 5), BOUNDARY, TooManyImages),
        (form(*[('name="f"', b"x")] * 1000), BOUNDARY, TooManyImages),
        (body_of({"images": [TEXT] * 5}), "", TooManyImages),
        (PHOTO, f"multipart/form-data; boundary={'a' * 60_000}", MalformedBody),
        (form(('name="f"; filename="a"', PHOTO), ('name="top_k"', b"3" * 2000)), BOUNDARY, MalformedBody),
        (b'{"images": [' + b"[]," * 9000 + b"[]]}", "", BodyTooLarge),
        (b'{"images": [], "a": ' + b'{"a":' * 100_000, "", MalformedBody),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_bodies_have_their_own_errors(body: bytes, content_type: str, error: type[ServiceError]) -> None:
    """Each kind of bad body raises its own error, and none raises another exception."""
    with pytest.raises(error):
        request_body.parse(body, content_type, max_images=4)


def test_options_come_from_query_and_body_but_not_twice() -> None:
    """Options come from query and body; the same option in both is refused."""
    options = request_body.validate(EmbedOptions, {"normalize": "false"}, {"pooling": "mean"})
    assert (False, "mean", "float") == (options.normalize, options.pooling, options.encoding)

    with pytest.raises(InvalidOptions, match="in the query and in the body: top_k"):
        request_body.validate(ClassifyOptions, {"top_k": "3"}, {"top_k": 4})


@pytest.mark.parametrize("query", ["top_k=3&top_k=3", "top_k=1&top_k=2&top_k=3", "top_k=1&top_k="])
def test_an_option_given_twice_is_refused(query: str) -> None:
    """An option that occurs twice in the query or in a form is refused, because no rule says which one counts."""
    with pytest.raises(InvalidOptions, match="more than once in the query: top_k"):
        request_body.validate(ClassifyOptions, QueryParams(query), {})

    twice = form(('name="f"; filename="a"', PHOTO), ('name="top_k"', b"3"), ('name="top_k"', b"4"))
    with pytest.raises(InvalidOptions, match="more than once in the form: top_k"):
        request_body.parse(twice, BOUNDARY, max_images=4)


@pytest.mark.parametrize("schema", [ClassifyOptions, BulkOptions, Parameters])
@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ("3", True),
        ("1000000", True),
        ("1000001", False),
        ("18446744073709551616", False),
        ("3.0", True),
        ("3e2", True),
        ("1e18", False),
        ("3.5", False),
        ("1e-2", False),
        ("true", False),
        ("0", False),
        ("-1", False),
        ('"many"', False),
    ],
)
def test_one_rule_for_top_k(schema: type[BaseModel], value: str, valid: bool) -> None:
    """The query and the JSON body accept the same values of `top_k`, and the schema states the bounds."""
    for query, fields in (({"top_k": value}, {}), ({}, load_texts(b'{"top_k": %s}' % value.encode(), 1))):
        if valid:
            assert float(value) == request_body.validate(schema, query, fields).top_k  # type: ignore[attr-defined]
        else:
            with pytest.raises(InvalidOptions, match="top_k: "):
                request_body.validate(schema, query, fields)
    assert all(bound in str(schema.model_json_schema()["properties"]["top_k"]) for bound in ("1000000", "'minimum': 1"))


@pytest.mark.parametrize("schema", [ClassifyOptions, BulkOptions, Parameters])
def test_a_mistyped_option_gets_a_proposal(schema: type[BaseModel]) -> None:
    """The error of an unknown option proposes a known one that is similar, in every contract."""
    with pytest.raises(InvalidOptions, match=r"^topk: unknown option, did you mean top_k\?$"):
        request_body.validate(schema, {"topk": "3"}, {})
    with pytest.raises(InvalidOptions, match="^colour: unknown option$"):
        request_body.validate(schema, {}, {"colour": 1})


def test_a_malformed_form_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A malformed form adds no line of the library to the log."""
    with caplog.at_level(logging.DEBUG), pytest.raises(MalformedBody):
        request_body.parse(b"no boundary", BOUNDARY, max_images=4)

    assert [] == caplog.records


def test_every_wrong_option_is_named() -> None:
    """The error names every wrong option, in its text and in its list."""
    with pytest.raises(InvalidOptions) as refusal:
        request_body.validate(ClassifyOptions, {"top_k": "0"}, {"topk": 4})
    assert ["top_k", "topk"] == sorted(error["loc"] for error in refusal.value.errors)
    assert "topk: unknown option" in refusal.value.detail


def test_a_long_name_is_cut_in_the_answer() -> None:
    """The error shows only the start of a very long option name."""
    with pytest.raises(InvalidOptions) as refusal:
        request_body.validate(ClassifyOptions, {}, {"x" * 1_000_000: 1})

    assert len(refusal.value.detail) < 200


def test_a_bare_image_needs_no_thread() -> None:
    """A body that is one image needs no parsing, so it needs no thread."""
    assert not request_body.needs_parsing(PHOTO, "application/x-www-form-urlencoded")
    assert request_body.needs_parsing(body_of({"images": []}), "image/jpeg")
    assert request_body.needs_parsing(PHOTO, BOUNDARY)


def test_many_wrong_options_are_not_all_named() -> None:
    """The error lists the first 20 wrong options and the number of the others."""
    with pytest.raises(InvalidOptions) as refusal:
        request_body.validate(ClassifyOptions, {f"wrong{number}": "1" for number in range(1000)}, {})

    assert 20 == len(refusal.value.errors)
    assert "and 980 more" in refusal.value.detail


@pytest.mark.parametrize(("sizes", "threads"), [([10, 20], 0), ([600_000, 600_000, 7], 1)])
def test_a_large_body_is_put_together_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], threads: int
) -> None:
    """The parts of a large body are joined in a thread, because that blocked the event loop for up to 60 ms."""
    parts = [bytes([65 + i]) * size for i, size in enumerate(sizes)]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    started = []

    async def receive() -> Any:
        return messages.pop(0)

    async def in_thread(work: Callable[..., bytes], *arguments: Any) -> bytes:
        started.append(work)
        return work(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", in_thread)
    request = Request({"type": "http", KEY: RequestRecord("id", None, 0.0, headers={})}, receive)
    admission: Any = SimpleNamespace(expect=lambda *_: None, receive=lambda *_: None)
    account = BodyAccount(admission, "interactive")

    assert b"".join(parts) == asyncio.run(request_body.read_limited(request, 1 << 21, account, 5.0))
    assert threads == len(started)
