"""Images in JSON: every format that clients were recorded to send, and values that are not images."""

from __future__ import annotations

import base64
import binascii
import random
from types import SimpleNamespace
from typing import Any

import pytest

from service.api.request import image_fields
from service.api.request.image_fields import from_any, from_message, from_text, whole, without_link
from service.errors import InvalidOptions, MalformedBody, ServiceError, UnsupportedInput, UrlNotSupported
from service.jobs import Link
from tests.tiny import photo

PHOTO = photo()
TEXT = base64.b64encode(PHOTO).decode()
URI = f"data:image/jpeg;base64,{TEXT}"


@pytest.mark.parametrize(
    "text", [TEXT.rstrip("="), TEXT[:40] + "\r\n" + TEXT[40:], TEXT.translate(str.maketrans("+/", "-_"))]
)
def test_base64_may_be_written_loosely(text: str) -> None:
    """Base64 without padding, with line breaks or with the URL-safe alphabet is accepted."""
    assert PHOTO == from_text(text)


@pytest.mark.parametrize("piece", [4, 8, 64])
def test_base64_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Every form of base64 gives the same bytes wherever a piece ends; a call gets no more than one piece."""
    sizes = []

    def decoded(text: str | bytes, **options: Any) -> bytes:
        sizes.append(len(text))
        return binascii.a2b_base64(text, **options)

    monkeypatch.setattr(image_fields, "binascii", SimpleNamespace(a2b_base64=decoded))
    monkeypatch.setattr(image_fields, "PIECE", piece)
    rng = random.Random(piece)
    for length in range(100):
        data = rng.randbytes(length)
        text = base64.b64encode(data).decode()
        for form in (text, text.rstrip("="), " ".join(text), base64.encodebytes(data).decode(), text + "="):
            assert data == from_text(form)
    assert max(sizes) <= piece + 8


@pytest.mark.parametrize(
    "text",
    [
        "AAA=" * 100_000,
        "AAAA" * 100_000 + "A",
        "AA=A",
        "A",
        "AAAA" * 100_000 + "?AAA",
        "AAAA" * 100_000 + "\u00e4AAA",
        "\ud800",
    ],
)
def test_what_is_no_base64_is_malformed(text: str) -> None:
    """Padding in the middle, a single last character and foreign characters are refused, also in a later piece."""
    assert isinstance(from_text(text), MalformedBody)


@pytest.mark.parametrize(
    "start",
    [
        "data:;base64,",
        "data:image/png; base64,",
        "  DATA:image/png;BASE64 ,",
        'data:image/png;name="a, b; c.png";base64,',
        f"data:image/png;name={'x' * 3000};base64,",
    ],
)
def test_a_data_uri_may_have_any_parameters(start: str) -> None:
    """Long and quoted parameters, blanks and capitals before the comma of a data URI are accepted."""
    assert PHOTO == from_text(start + TEXT) == from_any(start + TEXT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data:image/png,%89PNG%0D%0A", "has no ;base64 before its comma: data:image/png,...; percent-encoded"),
        (f"data:image/png;charset=base64;x=1,{TEXT}", "has no ;base64"),
        ("data:image/png;base64", "needs a comma within its first 4096 characters"),
        ('data:image/png;name="a,AAAA', "needs a comma"),
        (f"data:image/png;name={'x' * 5000};base64,{TEXT}", "needs a comma within its first 4096 characters"),
        ("data:" * 1_000_000, "needs a comma"),
    ],
)
def test_an_error_says_what_is_wrong_with_a_data_uri(text: str, says: str) -> None:
    """A data URI that is not read gets an error that says what is wrong with it."""
    found = from_text(text)

    assert isinstance(found, MalformedBody)
    assert says in found.detail


@pytest.mark.parametrize(
    "item",
    [
        URI,
        TEXT,
        {"image": TEXT},
        {"image": URI},
        {"bytes": TEXT},
        {"url": URI},
        {"image_url": URI},
        {"image_url": {"url": URI}},
        {"type": "image_url", "image_url": {"url": URI}},
        {"type": "input_image", "image_url": URI},
        {"type": "image_base64", "image_base64": URI},
        {"image": TEXT, "text": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}]},
        {"role": "user", "content": [{"type": "text", "text": " "}, {"type": "image_url", "image_url": {"url": URI}}]},
    ],
)
def test_every_spelling_gives_the_same_bytes(item: Any) -> None:
    """The image formats of OpenAI, infinity, Jina, Voyage and vLLM give the same bytes."""
    assert PHOTO == from_any(item)


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [
        ("a photograph of a cat", UnsupportedInput, "vision-only"),
        ("AAAA", UnsupportedInput, "vision-only"),
        ({"text": "a cat"}, UnsupportedInput, "vision-only"),
        ({"content": "a cat"}, UnsupportedInput, "vision-only"),
        ({"content": [{"text": "a"}, {"image": TEXT}]}, UnsupportedInput, "vision-only"),
        (1037, InvalidOptions, "token ids"),
        ([1037, 4937], InvalidOptions, "token ids"),
        ({"image_url": {"url": "file:///etc/passwd"}}, UrlNotSupported, "file URLs are not fetched"),
        ("S3://bucket/cat.jpg", UrlNotSupported, "s3 URLs are not fetched"),
        ("https://example.org/" + "a" * 2029, MalformedBody, "the URL has 2049 characters; the limit is 2048"),
        ({"image": "?"}, MalformedBody, "base64"),
        ({"image": 7}, MalformedBody, "base64"),
        ({"image_url": {}}, MalformedBody, "base64"),
        ({"picture": TEXT}, MalformedBody, "needs one of"),
        (None, MalformedBody, "base64"),
        ([TEXT], MalformedBody, "base64"),
        ({"content": [{"image": TEXT}, {"image": TEXT}]}, MalformedBody, "2 images"),
        ({"content": []}, MalformedBody, "0 images"),
    ],
)
def test_what_is_no_image_says_why(item: Any, error: type[ServiceError], says: str) -> None:
    """Text, token ids and URLs get errors of their own that say why they are refused."""
    found = from_any(item)

    assert isinstance(found, error)
    assert says in found.detail


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "HTTPS://example.org/cat.jpg?size=" + "9" * 2015])
def test_a_url_is_a_link_as_it_was_written(url: str) -> None:
    """An http or https URL in any format is a link, unchecked; a contract that fetches nothing gets an error."""
    for item in (url, {"url": url}, {"image_url": {"url": url}}, {"content": [{"image_url": {"url": url}}]}):
        assert Link(url) == from_any(item)
    assert isinstance(without_link(Link(url)), UrlNotSupported)
    assert PHOTO == without_link(PHOTO)


def test_deep_nesting_does_no_harm() -> None:
    """Deeply nested chat messages are refused with an error."""
    item: Any = URI
    for _ in range(400):
        item = {"content": [item]}

    assert isinstance(from_message(item), ServiceError)


def test_the_first_error_of_several_is_raised_with_its_index() -> None:
    """For contracts without errors per image the first error is raised, with its index if there are several."""
    with pytest.raises(MalformedBody, match="^image 1: broken"):
        whole([PHOTO, MalformedBody("broken"), MalformedBody("too")])
    with pytest.raises(MalformedBody, match="^broken"):
        whole([MalformedBody("broken")])
