"""Images in JSON: every format that clients were recorded to send, and values that are not images."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from service.api.request.image_fields import from_any, from_message, from_text, whole
from service.errors import InvalidOptions, MalformedBody, ServiceError, UnsupportedInput, UrlNotSupported
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
        ("https://example.org/cat.jpg", UrlNotSupported, "not fetched"),
        ({"url": "http://169.254.169.254/"}, UrlNotSupported, "not fetched"),
        ({"image_url": {"url": "file:///etc/passwd"}}, UrlNotSupported, "not fetched"),
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
