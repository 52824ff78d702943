"""Builds requests of the Open Inference Protocol as its clients do, and reads the answers."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import numpy as np

from tests.tiny import photo

INFER = "/v2/models/tiny/infer"
HEADER = "Inference-Header-Content-Length"
PHOTOS = [photo(seed) for seed in range(3)]


def elements(*images: bytes) -> bytes:
    """Encode BYTES elements as a raw tensor."""
    return b"".join(struct.pack("<I", len(one)) + one for one in images)


def binary_request(raw: bytes, datatype: str, shape: list[int], **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request body and its headers as tritonclient sends them, without a Content-Type."""
    tensor = {"name": "image", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]} | more).encode()
    return head + raw, {HEADER: str(len(head))}


def outputs_of(response: httpx.Response) -> dict[str, Any]:
    """The outputs of a response by name, from JSON or raw tensors."""
    assert 200 == response.status_code, response.text
    size = int(response.headers.get(HEADER, len(response.content)))
    content, rest = json.loads(response.content[:size]), response.content[size:]
    found = {}
    for one in content["outputs"]:
        values = one.get("data")
        if values is None:
            raw, rest = (
                rest[: one["parameters"]["binary_data_size"]],
                rest[one["parameters"]["binary_data_size"] :],
            )
            values = np.frombuffer(raw, "<f4") if one["datatype"] == "FP32" else texts(raw)
        found[one["name"]] = np.array(values).reshape(one["shape"])
    assert b"" == rest
    return found


def texts(raw: bytes) -> list[str]:
    """Decode a raw tensor of BYTES elements."""
    found = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return found
