"""JSON bodies within the limits are parsed; those beyond the limits are refused early."""

from __future__ import annotations

import pytest

from service.api.request import json_body
from service.errors import MalformedBody, ServiceError, UnsupportedImage

MOST = json_body.MOST_VALUES + json_body.VALUES_OF_AN_IMAGE * 4


def test_an_object_is_what_the_text_says() -> None:
    """A JSON object is parsed as usual; of two equal names the last one counts."""
    assert {"a": [1, "x", None]} == json_body.load_object(b' {"a": 1, "a": [1, "x", null]}', 4)


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
        (b'{"a": [' + b"1," * (MOST + 1) + b"1]}", MalformedBody),
    ],
)
def test_what_is_no_object_of_ours(body: bytes, error: type[ServiceError]) -> None:
    """Bodies that are not JSON, not objects, or beyond the limits are refused with an error."""
    with pytest.raises(error):
        json_body.load_object(body, 4)


def test_tensors_may_have_many_numbers_but_not_any_number() -> None:
    """Tensors may have many numbers, and those beyond the limits are refused before parsing."""
    assert [[1] * 10_000] == json_body.load_tensors(b"[[" + b"1," * 9_999 + b"1]]")
    with pytest.raises(MalformedBody, match="binary"):
        json_body.load_tensors(b"[" + b"1," * (json_body.MOST_NUMBERS + 1) + b"1]")
    with pytest.raises(MalformedBody, match="lists"):
        json_body.load_tensors(b"[" * (json_body.MOST_LISTS + 1))
    with pytest.raises(MalformedBody, match="objects"):
        json_body.load_tensors(b"[" + b"{}," * json_body.MOST_OBJECTS + b"{}]")
