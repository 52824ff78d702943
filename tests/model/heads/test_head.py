"""The file of a custom head: what is written is read again, and everything else is refused with its reason."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from model.errors import HeadError
from model.heads.head import MOST_BYTES, Head

WEIGHT, BIAS = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0.5, -0.5], np.float32)
LABELS = ("cat", "dög")
MODEL = "0123456789ab"
HEAD = Head(WEIGHT, BIAS, LABELS, MODEL, {"pictures": 10})


def content(tensors: dict[str, Any] | None = None, **texts: str) -> bytes:
    """A file with changes; an empty text removes it."""
    usual = {"format": "vim-head", "version": "1", "fingerprint": MODEL, "labels": json.dumps(LABELS), "recipe": "{}"}
    given = {name: text for name, text in (usual | texts).items() if text}
    return save({"weight": WEIGHT, "bias": BIAS} if tensors is None else tensors, given)


def test_a_written_head_is_read_again() -> None:
    """Writing and reading keep all parts. The fingerprint depends on numbers and labels, and not on the recipe."""
    again = Head.read(HEAD.to_bytes())

    np.testing.assert_array_equal(WEIGHT, again.weight)
    np.testing.assert_array_equal(BIAS, again.bias)
    assert (LABELS, MODEL, {"pictures": 10}, 3) == (again.labels, again.model, again.recipe, again.features)
    assert 12 == len(again.fingerprint)
    assert HEAD.fingerprint == again.fingerprint == Head.read(content()).fingerprint
    assert again.fingerprint != Head.read(content(labels='["cat", "cow"]')).fingerprint
    assert again.fingerprint != Head.read(content({"weight": WEIGHT + 1, "bias": BIAS})).fingerprint


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a complete safetensors file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not a complete safetensors file"),
        (content()[:-1], "not a complete safetensors file"),
        (content() + b"x", "not a complete safetensors file"),
        (content(format="pt"), "not a head of format vim-head version 1: format 'pt'"),
        (content(version="2"), "version 1"),
        (save({"weight": WEIGHT}), "format 'None'"),
        (content({"weight": WEIGHT}), "the tensor bias is missing"),
        (content({"weight": WEIGHT.astype(np.float16), "bias": BIAS}), "weight must be F32; it is F16"),
        (content({"weight": WEIGHT[0], "bias": BIAS}), "weight (2, D)"),
        (content({"weight": WEIGHT, "bias": np.zeros(3, np.float32)}), "bias (2,)"),
        (content({"weight": np.full((2, 3), np.inf, np.float32), "bias": BIAS}), "NaN or infinity"),
        (content(labels="cat"), "'labels' must be a JSON list"),
        (content(labels=""), "'labels' must be a JSON list"),
        (content(labels='["cat", "cat"]'), "two classes have the same label"),
        (content(labels='["cat", " "]'), "1 to 200 printable characters"),
        (content(labels='["cat", "a\\nb"]'), "1 to 200 printable characters"),
        (content(labels='["cat", 3]'), "1 to 200 printable characters"),
        (content(labels='["cat"]'), "2 to 10000 classes; got 1"),
        (content(recipe="[]"), "'recipe' must be a JSON object"),
        (content(recipe="[" * 100_000), "'recipe' must be a JSON object"),
        (content(fingerprint="../../etc"), "12 hexadecimal digits"),
        (content(fingerprint=""), "12 hexadecimal digits"),
        (bytes(MOST_BYTES + 1), f"at most {MOST_BYTES}"),
    ],
)
def test_anything_else_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    """A file that is damaged, incomplete or of another kind is refused, and the error says why."""
    with pytest.raises(HeadError) as refused:
        Head.read(data)

    assert reason in str(refused.value)
