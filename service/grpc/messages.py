"""Messages of the protocol as what the HTTP application reads and writes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2 as pb

from service.api.oip import tensors
from service.api.oip.forms import InProcess
from service.api.oip.tensors import RequestHeader, Tensor
from service.api.request.json_body import MOST_NUMBERS, MOST_VALUES
from service.errors import MalformedBody

_LENGTH = struct.Struct("<I")
# Each part of a message takes time on the event loop, so the number of parts is checked first.
MOST_INPUTS, MOST_OUTPUTS, MOST_PARAMETERS, MOST_DIMENSIONS = 8, 32, 100, 8


class MessageForm(InProcess):
    """A message of the protocol and its answer. Raises MalformedBody."""

    def __init__(self, request: pb.ModelInferRequest) -> None:
        _check_counts(request)
        raw = _raw(request)
        super().__init__(raw[0] if len(raw) == 1 else b"".join(raw))
        self._content = _content(request, raw)

    def read(self, body: bytes) -> tuple[RequestHeader, list[Tensor]]:
        """Validate the message. Raises MalformedBody, UnsupportedInput."""
        return tensors.parsed(self._content, memoryview(body))

    @property
    def answer(self) -> pb.ModelInferResponse:
        """The answer as a message."""
        assert self.kept is not None  # the request has succeeded
        content, raw = self.kept
        answer = pb.ModelInferResponse(
            model_name=content["model_name"], model_version=content["model_version"], id=content.get("id", "")
        )
        for name, value in content["parameters"].items():
            answer.parameters[name].string_param = value
        offset = 0
        for one in content["outputs"]:
            end = offset + one["parameters"]["binary_data_size"]
            answer.outputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
            answer.raw_output_contents.append(raw[offset:end])
            offset = end
        return answer


def parsed(content: Any, message: Any) -> Any:
    """Fill a message from JSON; members that it does not have are left out."""
    return ParseDict(content, message, ignore_unknown_fields=True)


def _check_counts(request: pb.ModelInferRequest) -> None:
    inputs, outputs = request.inputs[:MOST_INPUTS], request.outputs[:MOST_OUTPUTS]
    counts = [("inputs", len(request.inputs), MOST_INPUTS), ("outputs", len(request.outputs), MOST_OUTPUTS)]
    counts += [("parameters", len(one.parameters), MOST_PARAMETERS) for one in (request, *inputs, *outputs)]
    counts += [("dimensions", len(one.shape), MOST_DIMENSIONS) for one in inputs]
    counts += [("elements in bytes_contents", len(one.contents.bytes_contents), MOST_VALUES) for one in inputs]
    counts += [("numbers in uint_contents", len(one.contents.uint_contents), MOST_NUMBERS) for one in inputs]
    for what, count, most in counts:
        if count > most:
            raise MalformedBody(f"the message has {count} {what}; the limit is {most}")


def _raw(request: pb.ModelInferRequest) -> list[bytes]:
    """The raw bytes of each input, from either form that a client may use."""
    if not request.raw_input_contents:
        return [_from_contents(one) for one in request.inputs]
    if len(request.raw_input_contents) != len(request.inputs):
        raise MalformedBody(
            f"the request has {len(request.inputs)} inputs, but {len(request.raw_input_contents)} raw_input_contents"
        )
    if any(one.HasField("contents") for one in request.inputs):
        raise MalformedBody("an input may have contents only if the request has no raw_input_contents")
    return list(request.raw_input_contents)


def _from_contents(one: pb.ModelInferRequest.InferInputTensor) -> bytes:
    if one.contents.bytes_contents:
        return b"".join([part for value in one.contents.bytes_contents for part in (_LENGTH.pack(len(value)), value)])
    values = one.contents.uint_contents
    if one.datatype == "UINT8" and values:
        numbers = np.fromiter(values, np.uint32, len(values))
        if numbers.max() > np.iinfo(np.uint8).max:
            raise MalformedBody("uint_contents of a UINT8 tensor must be at most 255")
        return numbers.astype(np.uint8).tobytes()
    return b""


def _content(request: pb.ModelInferRequest, raw: Sequence[bytes]) -> dict[str, Any]:
    """The message as the JSON of a request whose inputs and outputs are raw tensors."""
    inputs = [
        {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
            "parameters": _parameters(one.parameters) | {"binary_data_size": len(data)},
        }
        for one, data in zip(request.inputs, raw, strict=True)
    ]
    outputs = [
        {"name": one.name, "parameters": _parameters(one.parameters) | {"binary_data": True}} for one in request.outputs
    ]
    parameters = _parameters(request.parameters) | {"binary_data_output": True}
    content: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "parameters": parameters}
    return content | {"id": request.id} if request.id else content


def _parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    return {name: _value(one) for name, one in given.items() if one.WhichOneof("parameter_choice")}


def _value(parameter: pb.InferParameter) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice"))
