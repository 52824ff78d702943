"""Messages with too many parts are refused before each part is read."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from service.errors import MalformedBody
from service.grpc.messages import MessageForm


def message(inputs: int = 1, outputs: int = 0) -> Any:
    """A message with so many inputs and outputs."""
    request = pb.ModelInferRequest(model_name="tiny")
    for _ in range(inputs):
        request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    for _ in range(outputs):
        request.outputs.add(name="scores")
    return request


def with_parameters() -> Any:
    """A message with many parameters."""
    request = message()
    for number in range(1000):
        request.parameters[str(number)].int64_param = number
    return request


def with_shape() -> Any:
    """A message whose input has many dimensions."""
    request = message()
    request.inputs[0].shape.extend([1] * 1000)
    return request


def with_elements() -> Any:
    """A message with many empty images."""
    request = message()
    request.inputs[0].contents.bytes_contents.extend([b""] * 2000)
    return request


def with_numbers() -> Any:
    """A message with many numbers."""
    request = message()
    request.inputs[0].contents.uint_contents.extend([1] * 700_000)
    return request


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (message(inputs=1000), "1000 inputs; the limit is 8"),
        (message(outputs=1000), "1000 outputs; the limit is 32"),
        (with_parameters(), "1000 parameters; the limit is 100"),
        (with_shape(), "1002 dimensions; the limit is 8"),
        (with_elements(), "2000 elements in bytes_contents"),
        (with_numbers(), "700000 numbers in uint_contents"),
    ],
    ids=["inputs", "outputs", "parameters", "shape", "elements", "numbers"],
)
def test_too_many_parts_are_refused(given: Any, says: str) -> None:
    """The error names the part and its limit."""
    with pytest.raises(MalformedBody, match=says):
        MessageForm(given)


def test_usual_messages_are_read() -> None:
    """A message with one image is within the limits."""
    request = message(outputs=3)
    request.raw_input_contents.append(b"1234")

    assert b"1234" == MessageForm(request).body
