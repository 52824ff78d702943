"""Splits multipart/form-data into its parts, in order. Only this module uses python_multipart."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import MalformedBody, TooManyImages

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_SILENT = logging.Logger("multipart")  # has no handlers
_SILENT.disabled = True

MAX_FIELDS = 20  # there are few options; a form with ten thousand parts is an attack


@dataclass(slots=True)
class Part:
    """One part: the form field's name, whether it is a file, and its bytes."""

    name: str = ""
    is_file: bool = False
    data: bytes = b""
    chunks: list[bytes] = field(default_factory=list, repr=False)


def parts(body: bytes, content_type: str, max_images: int) -> list[Part]:
    """Split a body at its boundary. Raises MalformedBody, or TooManyImages as soon as there is one part too many."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedBody("multipart/form-data without a boundary; let your HTTP client set the Content-Type")
    collector = _Collector(max_images)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.logger = _SILENT  # the library logs a warning for a malformed body; the request's log line is enough
        parser.write(body)
        parser.finalize()
    except ValueError as error:  # the library's parse errors are ValueErrors
        raise MalformedBody(f"broken multipart body: {error}") from error
    if not collector.complete:
        raise MalformedBody("the multipart body ends before its closing boundary")
    return collector.parts


class _Collector:
    """Receives the events of the parser. A header arrives in pieces, which are collected until it ends."""

    def __init__(self, max_images: int) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._max_images = max_images
        self._header = bytearray()
        self._value = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        """The functions that the parser calls."""
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        if len(self.parts) >= self._max_images + MAX_FIELDS:
            raise TooManyImages(f"more parts than {self._max_images} images (VIM_MAX_IMAGES) and {MAX_FIELDS} options")
        self.parts.append(Part())

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].chunks.append(data[start:end])

    def _part_end(self) -> None:
        part = self.parts[-1]
        part.data = b"".join(part.chunks)
        part.chunks.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            options = parse_options_header(bytes(self._value))[1]
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            self.parts[-1].is_file = b"filename" in options
        self._header.clear()
        self._value.clear()

    def _end(self) -> None:
        self.complete = True
