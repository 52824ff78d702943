"""Tensors of the Open Inference Protocol: which requests are accepted, as JSON and raw, and which are refused."""

from __future__ import annotations

import base64
import json
import random
import struct
from typing import Any

import numpy as np
import pytest

from service.api.oip import tensors
from service.api.oip.tensors import Output, Tensor, encode, images_of, parse
from service.errors import (
    BodyTooLarge,
    EmptyBody,
    MalformedBody,
    ServiceError,
    TooManyImages,
    UnsupportedImage,
    UnsupportedInput,
)
from tests.tiny import photo

PIXELS = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
PHOTO = photo()


def body_of(inputs: list[dict[str, Any]], raw: bytes = b"", **more: Any) -> tuple[bytes, int]:
    """The body of a request and the size of its JSON."""
    header = json.dumps({"inputs": inputs} | more).encode()
    return header + raw, len(header)


def element(data: bytes) -> bytes:
    """Encode one BYTES element."""
    return struct.pack("<I", len(data)) + data


def raw_input(data: bytes, datatype: str, shape: list[int]) -> dict[str, Any]:
    """An input whose data follow the JSON as raw bytes."""
    return {"name": "image", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}


def test_raw_bytes_elements_are_images() -> None:
    """The elements of a raw BYTES tensor, each with its length before it, are the images."""
    raw = element(PHOTO) + element(b"second")
    _, (tensor,) = parse(*body_of([raw_input(raw, "BYTES", [2, 1])], raw), "image")

    assert [PHOTO, b"second"] == images_of(tensor, 64)


@pytest.mark.parametrize("nested", [True, False])
def test_json_bytes_are_base64(nested: bool) -> None:
    """BYTES data in JSON is base64 or a data URI, flat or nested as the shape says."""
    texts = [base64.b64encode(PHOTO).decode(), "data:image/jpeg;base64," + base64.b64encode(PHOTO).decode()]
    data = [[text] for text in texts] if nested else texts
    body, _ = body_of([{"name": "image", "datatype": "BYTES", "shape": [2, 1], "data": data}])
    _, (tensor,) = parse(body, None, "image")

    assert [PHOTO, PHOTO] == images_of(tensor, 64)


@pytest.mark.parametrize("form", ["raw", "nested", "flat"])
def test_pixels_arrive_unchanged(form: str) -> None:
    """Pixels arrive unchanged, in row-major order, as JSON and as raw bytes."""
    if form == "raw":
        body, size = body_of([raw_input(PIXELS.tobytes(), "UINT8", [2, 3, 4, 3])], PIXELS.tobytes())
    else:
        data = PIXELS.tolist() if form == "nested" else PIXELS.ravel().tolist()
        body, size = body_of([{"name": "image", "datatype": "UINT8", "shape": [2, 3, 4, 3], "data": data}])
    _, (tensor,) = parse(body, size if form == "raw" else None, "image")
    found = images_of(tensor, 64)

    assert 2 == len(found)
    np.testing.assert_array_equal(np.stack(found), PIXELS)  # type: ignore[arg-type]


def test_pixels_in_json_are_converted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested numbers are converted a few at a time, because other requests wait during a single call."""
    sizes = []

    def converted(values: list[int]) -> bytes:
        sizes.append(len(values))
        return bytes(values)

    monkeypatch.setattr(tensors, "PIECE", 16)
    monkeypatch.setattr(tensors, "bytes", converted, raising=False)
    body, _ = body_of([{"name": "image", "datatype": "UINT8", "shape": [2, 3, 4, 3], "data": PIXELS.tolist()}])
    _, (tensor,) = parse(body, None, "image")

    np.testing.assert_array_equal(np.stack(images_of(tensor, 64)), PIXELS)  # type: ignore[arg-type]
    assert [16, 16, 16, 16, 8] == sizes


def test_three_images_as_nested_lists_are_read_and_ten_are_not() -> None:
    """A few images of 224 x 224 as nested lists are read; for more the error proposes binary tensors."""
    image = [[[200, 100, 17]] * 224] * 224
    body, _ = body_of([{"name": "image", "datatype": "UINT8", "shape": [3, 224, 224, 3], "data": [image] * 3}])
    many, _ = body_of([{"name": "image", "datatype": "UINT8", "shape": [10, 224, 224, 3], "data": [image] * 10}])
    _, (tensor,) = parse(body, None, "image")

    assert [(224, 224, 3)] * 3 == [one.shape for one in images_of(tensor, 64)]  # type: ignore[union-attr]
    with pytest.raises(BodyTooLarge, match="binary tensor"):
        parse(many, None, "image")


def test_null_means_absent() -> None:
    """A member that is null counts as absent, at every level; clients of typed languages send all members."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"], "parameters": None}
    body, _ = body_of([tensor], id=None, outputs=None, parameters=None)
    header, _ = parse(body, None, "image")
    assert (None, [], 0) == (header.id, header.outputs, header.parameters.timeout)

    nulls = {"binary_data_size": None, "shared_memory_region": None}
    output = {"name": "scores", "parameters": {"classification": None, "binary_data": None}}
    body, _ = body_of([tensor | {"parameters": nulls}], outputs=[output], parameters={"timeout": None})
    header, _ = parse(body, None, "image")
    assert 0 == header.outputs[0].parameters.classification


def test_shared_memory_is_named() -> None:
    """A request for shared memory gets an error about shared memory, with or without data."""
    region = {"shared_memory_region": "pixels", "shared_memory_byte_size": 12}
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "parameters": region}
    output = {"name": "scores", "parameters": region}
    for inputs, outputs in (
        ([tensor], []),
        ([tensor | {"data": [1] * 12}], []),
        ([tensor | {"parameters": {}, "data": [1] * 12}], [output]),
    ):
        with pytest.raises(UnsupportedInput, match="shared memory is not supported"):
            parse(body_of(inputs, outputs=outputs)[0], None, "image")


def test_a_file_where_tensors_are_needed_is_explained() -> None:
    """A bare image without its header gets an error that names the header and the paths that take files."""
    with pytest.raises(UnsupportedImage, match=r"Inference-Header-Content-Length: 0.*/v1/classify"):
        parse(PHOTO, None, "image")


def test_a_header_of_no_bytes_means_one_bare_element() -> None:
    """With a header length of 0 the body is one BYTES element, and raw outputs are requested."""
    header, (tensor,) = parse(PHOTO, 0, "image")

    assert [PHOTO] == images_of(tensor, 64)
    assert header.parameters.binary_data_output


def test_unknown_members_are_ignored() -> None:
    """Unknown members and custom parameters are ignored."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"], "extra": 1}
    body, _ = body_of([tensor], model_name="x", parameters={"sequence_id": 3, "mine": "yes", "timeout": 5000})
    header, _ = parse(body, None, "image")

    assert 5000 == header.parameters.timeout


@pytest.mark.parametrize(
    ("tensor", "raw", "says"),
    [
        ({"data": ["AA", "AA"]}, b"", "2 elements"),
        ({"data": "AAAA"}, b"", "must be a list"),
        ({"data": [["AA"]], "shape": [1]}, b"", "base64"),
        ({}, b"", "either data or"),
        ({"data": ["AA"], "parameters": {"binary_data_size": 0}}, b"", "either data or"),
        ({"parameters": {"binary_data_size": 9}}, b"12345678", "9 raw bytes; the body has 8"),
        ({"parameters": {"binary_data_size": 7}}, b"12345678", "follow the last input"),
        ({"parameters": {"binary_data_size": 8}}, b"\xff\xff\xff\xff1234", "element 0 is longer"),
        ({"parameters": {"binary_data_size": 2}}, b"\x00\x00", "element 0 is longer"),
        ({"parameters": {"binary_data_size": -1}}, b"", "greater than or equal"),
        ({"shape": [-1], "data": []}, b"", "shape"),
        ({"shape": "many", "data": []}, b"", "shape"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 256]}, b"", "0 to 255"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, -1]}, b"", "0 to 255"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 0.5]}, b"", "0 to 255"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, "3"]}, b"", "0 to 255"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 2**80]}, b"", "0 to 255"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [[1, 2], [3]]}, b"", "not an array"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2]}, b"", "2 numbers"),
        ({"datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2, 3]}, b"", "N, height, width, 3"),
        ({"datatype": "UINT8", "shape": [1, 0, 9, 3], "data": []}, b"", "N, height, width, 3"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 4], "data": [1, 2, 3, 4]}, b"", "N, height, width, 3"),
        ({"datatype": "UINT8", "shape": [9, 10**9, 10**9, 3], "data": [1]}, b"", "1 numbers"),
        ({"shape": [1] * 9, "data": ["x"]}, b"", "shape"),
        ({"shape": [], "data": ["x"]}, b"", "shape"),
        ({"shape": ["1"], "data": ["x"]}, b"", "shape"),
        ({"shape": [True], "data": ["x"]}, b"", "shape"),
        ({"shape": [1.0], "data": ["x"]}, b"", "shape"),
        ({"parameters": {"binary_data_size": True}}, b"1", "binary_data_size"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, True, 2]}, b"", "0 to 255"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [[1, 2, 3], 4]}, b"", "not an array"),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": "AAAA"}, b"", "must be a list"),
        ({"name": "x" * 201, "data": ["x"]}, b"", "200 characters"),
        ({"parameters": {"binary_data_size": 20}}, bytes(20), "more elements"),
    ],
)
def test_what_does_not_add_up_is_malformed(tensor: dict[str, Any], raw: bytes, says: str) -> None:
    """Wrong sizes, shapes and values are refused with an error that shows what was found."""
    body, size = body_of([{"name": "image", "datatype": "BYTES", "shape": [1]} | tensor], raw)
    with pytest.raises(MalformedBody) as caught:  # noqa: PT012
        _, (found,) = parse(body, size, "image")
        errors = [one for one in images_of(found, 64) if isinstance(one, ServiceError)]
        raise errors[0]

    assert says in caught.value.detail


@pytest.mark.parametrize(
    "tensor",
    [
        {"shape": [65], "data": ["x"] * 65},
        {"shape": [10**9, 10**9], "data": []},
        {"datatype": "UINT8", "shape": [65, 1, 1, 3], "data": [1] * 195},
    ],
)
def test_too_many_images_are_refused_before_they_are_looked_at(tensor: dict[str, Any]) -> None:
    """Too many images are refused by the shape alone, before the data is read."""
    body, _ = body_of([{"name": "image", "datatype": "BYTES"} | tensor])
    _, (found,) = parse(body, None, "image")
    with pytest.raises(TooManyImages):
        images_of(found, 64)


def test_a_request_of_many_tensors_is_malformed() -> None:
    """A request with more than eight inputs is refused."""
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": []}]
    with pytest.raises(MalformedBody, match="at most 8 items"):
        parse(body_of(inputs * 9)[0], None, "image")


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"inputs": 3}', b"{nonsense", b'{"inputs": [{"name": "a"}]}'])
def test_what_is_no_request_is_malformed(body: bytes) -> None:
    """Broken JSON, and JSON that is not an infer request, is refused."""
    with pytest.raises(MalformedBody):
        parse(body, None, "image")


def test_a_header_longer_than_the_body_is_malformed() -> None:
    """A header length larger than the body is refused, and the error has both numbers."""
    with pytest.raises(MalformedBody, match="99; the body has 2 bytes"):
        parse(b"{}", 99, "image")


def test_mutated_requests_never_raise_anything_else() -> None:
    """2,000 damaged copies of valid requests raise no exception except ServiceError."""
    rng = random.Random(7)
    raw = element(PHOTO[:40]) + element(b"x")
    good = [
        body_of([raw_input(raw, "BYTES", [2])], raw),
        body_of([raw_input(PIXELS.tobytes(), "UINT8", [2, 3, 4, 3])], PIXELS.tobytes()),
        body_of([{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [[[[1, 2, 3]]]]}]),
    ]
    for _ in range(2000):
        body, size = rng.choice(good)
        damaged = bytearray(body)
        for _ in range(rng.choice([1, 2, 8])):
            at = rng.randrange(len(damaged))
            damaged[at : at + 1] = rng.choice([b"", rng.randbytes(1), b"9", b"[", b'"', rng.randbytes(4)])
        try:
            _, found = parse(bytes(damaged), size + rng.choice([-1, 0, 0, 0, 1]), "image")
            for tensor in found:
                images_of(tensor, 64)
        except (MalformedBody, EmptyBody, TooManyImages):
            continue


def test_outputs_as_json_and_raw() -> None:
    """Outputs are flat in JSON; raw outputs are little-endian, with a length before each string."""
    values = np.array([[1, 2], [3, 4]], np.float32)
    outputs = [
        Output("a", (2, 2), values, binary=False),
        Output("b", (2, 2), values, binary=True),
        Output("c", (2, 1), ["one", "zwölf"], binary=True),
        Output("d", (2, 1), ["one", "zwölf"], binary=False),
    ]
    content, raw = encode({"model_name": "m"}, outputs)
    plain, binary, texts, words = content["outputs"]

    assert [1, 2, 3, 4] == plain["data"].tolist()
    assert ({"binary_data_size": 16}, "FP32") == (binary["parameters"], binary["datatype"])
    assert ({"binary_data_size": 17}, "BYTES") == (texts["parameters"], texts["datatype"])
    assert values.tobytes() + element(b"one") + element("zwölf".encode()) == raw
    assert ["one", "zwölf"] == words["data"]


def test_a_raw_view_is_not_copied() -> None:
    """Raw pixels are not copied, because a batch of large photographs would take twice the memory."""
    tensor = Tensor("image", "UINT8", PIXELS.shape, memoryview(PIXELS.tobytes()))

    assert all(np.shares_memory(one, np.frombuffer(tensor.data, np.uint8)) for one in images_of(tensor, 64))
