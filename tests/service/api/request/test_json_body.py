"""JSON bodies within the limits are parsed; those beyond the limits are refused early."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from service.api.request import json_body
from service.errors import BodyTooLarge, MalformedBody, ServiceError, UnsupportedImage
from tests.tiny import photo

MOST = json_body.MOST_VALUES + json_body.VALUES_OF_AN_IMAGE * 4


def test_an_object_is_what_the_text_says() -> None:
    """A JSON object is parsed as usual; of two equal names the last one counts."""
    assert {"a": [1, "x", None]} == json_body.load_object(b' {"a": 1, "a": [1, "x", null]}', 4, "")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", UnsupportedImage),
        (b"hello", UnsupportedImage),
        (b"[]", MalformedBody),
        (b'{"a": NaN}', MalformedBody),
        (b'{"a": 1e400}', MalformedBody),
        (b'{"a": "\\ud800"}', MalformedBody),
        (b'{"a": "\xff"}', MalformedBody),
        (b'{"a": 1} {"a": 2}', MalformedBody),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", MalformedBody),
        (b'{"a":' * 60 + b"1" + b"}" * 60, MalformedBody),
        (b'{"a": [' + b"1," * (MOST + 1) + b"1]}", BodyTooLarge),
    ],
)
def test_what_is_no_object_of_ours(body: bytes, error: type[ServiceError]) -> None:
    """Bodies that are not JSON, not objects, or beyond the limits are refused with an error."""
    with pytest.raises(error):
        json_body.load_object(body, 4, "")


def test_tensors_may_have_many_numbers_but_not_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors may have many numbers; those beyond the limits are refused before the parser sees them."""
    assert [[1] * 10_000] == json_body.load_tensors(b"[[" + b"1," * 9_999 + b"1]]")

    monkeypatch.setattr(orjson, "loads", lambda _: pytest.fail("parsed"))
    for body in (
        b"[" + b"1," * (json_body.MOST_NUMBERS + 1) + b"1]",
        b"[" * (json_body.MOST_LISTS + 1),
        b"[" + b"{}," * json_body.MOST_OBJECTS + b"{}]",
        b"{" + b'"a":1 ' * (json_body.MOST_MEMBERS + 1) + b"}",
    ):
        with pytest.raises(BodyTooLarge, match=r"610000 values.*binary tensor"):
            json_body.load_tensors(body)


def test_a_few_images_as_nested_lists_are_within_the_limits() -> None:
    """Four images of 224 x 224 x 3, nested as KServe's clients send them, are within the limits."""
    image = [[[200, 100, 17]] * 224] * 224

    assert [image] * 4 == json_body.load_tensors(json.dumps([image] * 4).encode())


@pytest.mark.parametrize("body", [b"[[1], [2]]", b"[[1], [2"])
def test_the_collector_pauses_while_tensors_are_parsed(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """Python's collector is off while nested lists are parsed, and on again afterwards, also after an error."""
    parse, states = orjson.loads, []

    def parsed(content: bytes) -> Any:
        states.append(gc.isenabled())
        return parse(content)

    monkeypatch.setattr(orjson, "loads", parsed)
    with contextlib.suppress(MalformedBody):
        json_body.load_tensors(body)

    assert [False] == states
    assert gc.isenabled()


@pytest.mark.parametrize("load", [json_body.load_tensors, lambda body: json_body.load_texts(body, 1)])
def test_a_byte_order_mark_is_ignored(load: Callable[[bytes], Any]) -> None:
    """UTF-8's byte order mark before the text is ignored, as RFC 8259 allows."""
    body = b"\xef\xbb\xbf" + b'{"a": 1}'

    assert {"a": 1} == load(body) == json_body.load_object(body, 1, "")


def test_a_file_where_json_is_needed_is_named() -> None:
    """An image file sent to a path that takes JSON is named, and so are the paths that take files."""
    with pytest.raises(UnsupportedImage, match=r"a file in the format PNG; this path takes JSON only.*/v1/embed"):
        json_body.load_object(photo(kind="PNG"), 1, json_body.only_json("{}"))
