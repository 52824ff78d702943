"""Messages of the protocol to and from the HTTP form: JSON, then raw tensors (the extension `binary_tensor_data`)."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2 as pb

from service.errors import MalformedBody

HEADER = b"inference-header-content-length"
_LENGTH = struct.Struct("<I")
_PARAMETERS = ("bool_param", "int64_param", "string_param", "double_param", "uint64_param")


def infer_request(request: pb.ModelInferRequest) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The body and headers of a request over HTTP. Raises MalformedBody."""
    raw = _raw(request)
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
    if request.id:
        content["id"] = request.id
    header = json.dumps(content).encode()
    headers = [(HEADER, str(len(header)).encode()), (b"content-type", b"application/octet-stream")]
    return b"".join([header, *raw]), headers


def infer_response(body: bytes, headers: Mapping[bytes, bytes]) -> pb.ModelInferResponse:
    """The message of a response over HTTP."""
    size = int(headers.get(HEADER, len(body)))
    content = json.loads(body[:size])
    response = pb.ModelInferResponse(
        model_name=content["model_name"], model_version=content["model_version"], id=content.get("id", "")
    )
    for name, value in content["parameters"].items():
        response.parameters[name].string_param = value
    offset = size
    for one in content["outputs"]:
        length = one["parameters"]["binary_data_size"]
        response.outputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
        response.raw_output_contents.append(body[offset : offset + length])
        offset += length
    return response


def parsed(content: Any, message: Any) -> Any:
    """Fill a message from JSON; members that it does not have are left out."""
    return ParseDict(content, message, ignore_unknown_fields=True)


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


def _parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    return {name: _value(one) for name, one in given.items() if one.WhichOneof("parameter_choice")}


def _value(parameter: pb.InferParameter) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice"))
