"""The forms of infer requests: which are read on the event loop, and how answers are written."""

from __future__ import annotations

import json

import pytest
from starlette.requests import Request

from service.api.oip.forms import FORM, HEADER, SMALL_JSON, InProcess, JsonForm, form_of
from service.api.oip.tensors import RequestHeader, Tensor
from service.api.request.body import LARGE
from service.errors import MalformedBody

CONTENT = {"model_name": "m", "outputs": [{"name": "labels", "parameters": {"binary_data_size": 3}}]}


class Ready(InProcess):
    """A form that has nothing to read."""

    def read(self, body: bytes) -> tuple[RequestHeader, list[Tensor]]:
        """Return no inputs."""
        return RequestHeader(inputs=[]), []


def request(form: InProcess | None = None, size: str | None = None) -> Request:
    """A request with a form, or with a length of its JSON."""
    headers = [] if size is None else [(HEADER.lower().encode(), size.encode())]
    return Request({"type": "http", "headers": headers, FORM: form})


@pytest.mark.parametrize(
    ("json_size", "body", "quick"),
    [(100, 200, True), (SMALL_JSON + 1, SMALL_JSON + 2, False), (100, LARGE, False), (None, 100, False), (0, 9, True)],
)
def test_only_short_json_is_read_at_once(json_size: int | None, body: int, quick: bool) -> None:
    """JSON alone may hold images in base64, and a large body takes long to copy; a thread reads both."""
    assert quick == JsonForm(json_size).is_quick(bytes(body))


def test_json_is_followed_by_raw_tensors() -> None:
    """The answer has raw tensors after its JSON only if an output was requested in that form."""
    raw = JsonForm(None).write(CONTENT, b"abc")
    plain = JsonForm(None).write({"outputs": [{"name": "labels", "data": []}]}, b"")

    size = int(raw.headers[HEADER])
    assert CONTENT == json.loads(bytes(raw.body)[:size])
    assert b"abc" == bytes(raw.body)[size:]
    assert HEADER not in plain.headers


def test_a_form_in_the_scope_is_used() -> None:
    """A request within the process brings its form, which keeps the answer."""
    form = Ready(b"")

    assert form is form_of(request(form))
    assert b"" == form.write(CONTENT, b"abc").body
    assert (CONTENT, b"abc") == form.kept


def test_the_length_of_the_json_must_be_a_number() -> None:
    """An invalid length is refused."""
    with pytest.raises(MalformedBody, match=HEADER):
        form_of(request(size="-1"))
