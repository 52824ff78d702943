"""Parses and encodes tensors of the Open Inference Protocol: a JSON header, then raw tensors.

This module is independent of the model. In JSON, data is nested or flat, in row-major order. In a raw tensor,
numbers are little-endian without padding, and a BYTES element is its length as uint32, then its bytes.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from service.api.request.body import check_count
from service.api.request.image_fields import from_text, without_link
from service.api.request.json_body import FILE_PATHS, load_tensors, looks_like_json
from service.errors import MalformedBody, UnsupportedImage, UnsupportedInput
from service.jobs import Item

PIECE = 1 << 16  # numbers that are converted in one step, which holds Python's lock

_LENGTH = struct.Struct("<I")

Name = Annotated[str, Field(max_length=200)]
Whole = Annotated[int, Field(ge=0, strict=True)]  # strings and booleans are refused


class _Members(BaseModel):
    """An object of the protocol. A member that is null counts as absent."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, content: Any) -> Any:
        known = cls.model_fields
        if not isinstance(content, dict):
            return content
        return {name: content[name] for name in known if content.get(name) is not None}


class InputParameters(_Members):
    """The supported parameters of an input; others are ignored, as the protocol requires."""

    binary_data_size: Whole | None = None
    shared_memory_region: str | None = None


class InputHeader(_Members):
    """One input in the JSON of a request. `data` is None if the tensor follows the JSON as raw bytes."""

    name: Name
    datatype: Name
    shape: Annotated[list[Whole], Field(min_length=1, max_length=8)]
    parameters: InputParameters = InputParameters()
    data: Any = None


class OutputParameters(_Members):
    """The supported parameters of an output."""

    binary_data: bool | None = None
    classification: Whole = 0
    shared_memory_region: str | None = None


class OutputHeader(_Members):
    """One requested output."""

    name: Name
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Members):
    """The supported parameters of a request. `timeout` is in microseconds; 0 means none."""

    timeout: Whole = 0
    priority: Whole = 0
    binary_data_output: bool = False


class RequestHeader(_Members):
    """The JSON of an infer request."""

    id: str | None = None
    inputs: Annotated[list[InputHeader], Field(max_length=8)]
    outputs: Annotated[list[OutputHeader], Field(max_length=32)] = []
    parameters: RequestParameters = RequestParameters()

    def is_binary(self, output: OutputHeader) -> bool:
        """Return whether to send this output as raw bytes. Its own parameter overrides that of the request."""
        own = output.parameters.binary_data
        return self.parameters.binary_data_output if own is None else own


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input, not yet validated: `data` is a JSON value or raw bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any


@dataclass(frozen=True, slots=True)
class Output:
    """One output: float32 numbers or strings (BYTES), in row-major order, with their shape."""

    name: str
    shape: tuple[int, ...]
    values: np.ndarray | Sequence[str]
    binary: bool

    @property
    def datatype(self) -> str:
        """The name of the data type in the protocol."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"


def parse(body: bytes, json_size: int | None, input_name: str) -> tuple[RequestHeader, list[Tensor]]:
    """Parse the header and the inputs of a request. `json_size` is Inference-Header-Content-Length, None if not sent.

    0 means that the body is the only BYTES element of the only input, and that outputs are sent as raw bytes. Raises
    MalformedBody, BodyTooLarge, UnsupportedInput, UnsupportedImage.
    """
    if json_size == 0:
        return _raw_header(), [Tensor(input_name, "BYTES", (1,), _LENGTH.pack(len(body)) + body)]
    if json_size is not None and json_size > len(body):
        raise MalformedBody(f"Inference-Header-Content-Length is {json_size}; the body has {len(body)} bytes")
    if json_size is None and not looks_like_json(body):
        raise UnsupportedImage(
            "the body is not JSON; this path takes JSON with tensors, or the bytes of one image with the header "
            f"Inference-Header-Content-Length: 0; {FILE_PATHS}"
        )
    end = len(body) if json_size is None else json_size
    return parsed(load_tensors(body[:end]), memoryview(body)[end:])


def parsed(content: Any, rest: memoryview) -> tuple[RequestHeader, list[Tensor]]:
    """Validate the JSON of a request, already parsed, and find its inputs; `rest` are the raw tensors after it.

    Raises MalformedBody, UnsupportedInput.
    """
    header = _header(content)
    regions = [one.parameters.shared_memory_region for one in header.inputs]
    regions += [one.parameters.shared_memory_region for one in header.outputs]
    if any(one is not None for one in regions):
        raise UnsupportedInput("shared memory is not supported; send the tensors themselves")
    return header, _tensors(header, rest)


def images_of(tensor: Tensor, max_images: int) -> list[Item]:
    """The images of a BYTES tensor (encoded images; base64 in JSON) or of a UINT8 tensor (N, H, W, 3).

    Raises MalformedBody, EmptyBody, TooManyImages.
    """
    check_count(math.prod(tensor.shape) if tensor.datatype == "BYTES" else math.prod(tensor.shape[:1]), max_images)
    return _encoded(tensor) if tensor.datatype == "BYTES" else list(_pixels(tensor))


def encode(head: dict[str, Any], outputs: Sequence[Output]) -> tuple[dict[str, Any], bytes]:
    """Return the JSON of the response (`head` and the outputs), and the raw tensors that follow it."""
    raw = [_to_bytes(one.values) if one.binary else b"" for one in outputs]
    described = [_described(one, len(data)) for one, data in zip(outputs, raw, strict=True)]
    return head | {"outputs": described}, b"".join(raw)


def _raw_header() -> RequestHeader:
    return RequestHeader(inputs=[], parameters=RequestParameters(binary_data_output=True))


def _header(content: Any) -> RequestHeader:
    try:
        return RequestHeader.model_validate(content)
    except ValidationError as error:
        found = ("; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])).strip()
        raise MalformedBody(f"not an infer request: {found}") from error


def _tensors(header: RequestHeader, rest: memoryview) -> list[Tensor]:
    tensors = []
    for one in header.inputs:
        size = one.parameters.binary_data_size
        if (size is None) == (one.data is None):
            raise MalformedBody(f"input {one.name!r} needs either data or parameters.binary_data_size")
        if size is not None and size > len(rest):
            raise MalformedBody(f"input {one.name!r} should have {size} raw bytes; the body has {len(rest)} left")
        data = one.data if size is None else rest[:size]
        rest = rest if size is None else rest[size:]
        tensors.append(Tensor(one.name, one.datatype, tuple(one.shape), data))
    if len(rest):
        raise MalformedBody(f"{len(rest)} bytes follow the last input")
    return tensors


def _encoded(tensor: Tensor) -> list[Item]:
    raw = isinstance(tensor.data, memoryview | bytes)
    elements = list(itertools.islice(_split(tensor), math.prod(tensor.shape) + 1)) if raw else _flat(tensor)
    if len(elements) != math.prod(tensor.shape):
        found = "more" if raw and elements[math.prod(tensor.shape) :] else len(elements)
        raise MalformedBody(f"input {tensor.name!r} has shape {list(tensor.shape)} and {found} elements")
    return elements if raw else [without_link(from_text(one)) for one in elements]


def _split(tensor: Tensor) -> Iterator[bytes]:
    rest = memoryview(tensor.data)
    for number in itertools.count():
        if not rest:
            return
        if len(rest) < _LENGTH.size or len(rest) - _LENGTH.size < _LENGTH.unpack_from(rest)[0]:
            raise MalformedBody(f"input {tensor.name!r}: element {number} is longer than the rest of the tensor")
        end = _LENGTH.size + _LENGTH.unpack_from(rest)[0]
        yield bytes(rest[_LENGTH.size : end])
        rest = rest[end:]


def _flat(tensor: Tensor) -> list[Any]:
    """Flatten JSON data into one list; it may be nested as deep as the shape."""
    data = tensor.data
    for _ in tensor.shape[1:]:
        if isinstance(data, list) and data and all(isinstance(row, list) for row in data):
            data = [one for row in data for one in row]
    if not isinstance(data, list):
        raise MalformedBody(f"input {tensor.name!r}: data must be a list")
    return data


def _pixels(tensor: Tensor) -> np.ndarray:
    shape = tensor.shape
    if len(shape) != 4 or shape[3] != 3 or not math.prod(shape):
        raise MalformedBody(f"input {tensor.name!r} must have the shape [N, height, width, 3]; it has {list(shape)}")
    raw = isinstance(tensor.data, memoryview)
    values = np.frombuffer(tensor.data, np.uint8) if raw else _from_json(tensor)
    if values.size != math.prod(shape):
        raise MalformedBody(f"input {tensor.name!r} has shape {list(shape)} and {values.size} numbers")
    return values.reshape(shape)


def _from_json(tensor: Tensor) -> np.ndarray:
    """Convert nested or flat lists. numpy would do it in one call, which holds Python's lock for half a second."""
    values = tensor.data
    while isinstance(values, list) and values and isinstance(values[0], list):
        length = len(values[0])
        if not all(isinstance(row, list) and len(row) == length for row in values):
            raise MalformedBody(f"input {tensor.name!r}: data is not an array")
        values = [one for row in values for one in row]
    if not isinstance(values, list):
        raise MalformedBody(f"input {tensor.name!r}: data must be a list")
    pieces = [_as_bytes(tensor, values[start : start + PIECE]) for start in range(0, len(values), PIECE)]
    return np.frombuffer(b"".join(pieces), np.uint8)


def _as_bytes(tensor: Tensor, values: Sequence[Any]) -> bytes:
    try:
        if set(map(type, values)) == {int}:
            return bytes(values)
    except ValueError:  # a number outside 0 to 255
        pass
    raise MalformedBody(f"input {tensor.name!r}: UINT8 data must be whole numbers from 0 to 255")


def _to_bytes(values: np.ndarray | Sequence[str]) -> bytes:
    if isinstance(values, np.ndarray):
        return values.astype("<f4").tobytes()
    texts = [text.encode() for text in values]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _described(output: Output, size: int) -> dict[str, Any]:
    known = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
    if output.binary:
        return known | {"parameters": {"binary_data_size": size}}
    return known | {"data": output.values.ravel() if isinstance(output.values, np.ndarray) else list(output.values)}
