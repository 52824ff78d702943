"""Custom classification heads: a linear classifier on the features of a model, in a small file of its own.

The file is a safetensors file. Its metadata (texts) are `format` "vim-head", `version` "1", `fingerprint` (of the
model), `labels` (a JSON list of names) and `recipe` (a JSON object: how the head was taught). Its tensors are `weight`
(C, D) and `bias` (C,), float32, and those of its `Domain`, whose names begin with `domain.`, if it has one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.errors import HeadError
from model.heads.domain import Domain

MOST_BYTES = 16 << 20  # of a file
MOST_CLASSES = 10_000
LONGEST_LABEL = 200  # characters
FORMAT, VERSION = "vim-head", "1"

_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_DOMAIN = "domain."  # begins the names of the domain's tensors
_HEADER_START = 8  # the length of the header, as uint64

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A linear classifier. Raises HeadError if its parts do not fit together."""

    weight: Array  # (C, D)
    bias: Array  # (C,)
    labels: tuple[str, ...]
    model: str  # the fingerprint of the model whose features it takes
    recipe: Mapping[str, Any] = field(default_factory=dict)
    domain: Domain | None = None
    fingerprint: str = field(init=False)  # 12 hexadecimal digits of everything that changes a score, and of the labels

    def __post_init__(self) -> None:
        _check_labels(self.labels)
        classes = len(self.labels)
        if self.weight.ndim != 2 or self.weight.shape[0] != classes or self.bias.shape != (classes,):
            raise HeadError(
                f"{classes} labels need weight ({classes}, D) and bias ({classes},); "
                f"got {self.weight.shape} and {self.bias.shape}"
            )
        if not np.isfinite(self.weight).all() or not np.isfinite(self.bias).all():
            raise HeadError("weight or bias has NaN or infinity")
        if not _FINGERPRINT.fullmatch(self.model):
            raise HeadError(f"the model's fingerprint must have 12 hexadecimal digits; got {self.model[:40]!r}")
        if self.domain is not None and self.domain.features != self.features:
            raise HeadError(f"the domain takes {self.domain.features} features, the head {self.features}")
        object.__setattr__(self, "fingerprint", self._fingerprint())

    def _fingerprint(self) -> str:
        """Independent of the recipe and of the order in the file."""
        text = json.dumps([self.model, *self.labels]).encode()
        return hashlib.sha256(b"".join([text, *(one.tobytes() for one in self._tensors().values())])).hexdigest()[:12]

    def _tensors(self) -> dict[str, Array]:
        domain = {} if self.domain is None else self.domain.arrays()
        return {"weight": self.weight, "bias": self.bias} | {_DOMAIN + name: one for name, one in domain.items()}

    @property
    def features(self) -> int:
        """The number of features (D)."""
        return int(self.weight.shape[1])

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read the content of a file. Raises HeadError."""
        if len(data) > MOST_BYTES:
            raise HeadError(f"the file has {len(data)} bytes; a head has at most {MOST_BYTES}")
        metadata, tensors = _parsed(data)
        if (kind := metadata.get("format")) != FORMAT or metadata.get("version") != VERSION:
            raise HeadError(f"this is not a head of format {FORMAT} version {VERSION}: format {str(kind)[:40]!r}")
        if missing := sorted({"weight", "bias"} - tensors.keys()):
            raise HeadError(f"the tensor {missing[0]} is missing")
        labels, recipe = _loaded(metadata, "labels", list), _loaded(metadata, "recipe", dict, "{}")
        return cls(
            weight=tensors["weight"],
            bias=tensors["bias"],
            labels=tuple(labels),
            model=str(metadata.get("fingerprint", "")),
            recipe=recipe,
            domain=_domain(tensors),
        )

    def to_bytes(self) -> bytes:
        """The content of the file."""
        from safetensors.numpy import save

        texts = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.model,
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "recipe": json.dumps(self.recipe, ensure_ascii=False),
        }
        return save({name: np.ascontiguousarray(one, np.float32) for name, one in self._tensors().items()}, texts)


def _check_labels(labels: tuple[Any, ...]) -> None:
    if not 2 <= len(labels) <= MOST_CLASSES:
        raise HeadError(f"a head has 2 to {MOST_CLASSES} classes; got {len(labels)}")
    for label in labels:
        if not isinstance(label, str) or not label.strip() or not label.isprintable() or len(label) > LONGEST_LABEL:
            raise HeadError(f"a label must be 1 to {LONGEST_LABEL} printable characters; got {str(label)[:40]!r}")
    if len(set(labels)) != len(labels):
        raise HeadError("two classes have the same label")


def _parsed(data: bytes) -> tuple[Mapping[str, str], Mapping[str, Array]]:
    """The metadata and the float32 tensors of a safetensors file."""
    from safetensors import SafetensorError, deserialize  # not imported before a head is used

    try:
        found = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise HeadError(f"this is not a complete safetensors file ({str(error)[:100]})") from error
    size = int.from_bytes(data[:_HEADER_START], "little")
    metadata = json.loads(data[_HEADER_START : _HEADER_START + size]).get("__metadata__") or {}
    return metadata, {name: _array(name, one) for name, one in found.items()}


def _domain(tensors: Mapping[str, Array]) -> Domain | None:
    found = {name.removeprefix(_DOMAIN): one for name, one in tensors.items() if name.startswith(_DOMAIN)}
    return Domain.of(found) if found else None


def _array(name: str, tensor: Mapping[str, Any]) -> Array:
    if tensor["dtype"] != "F32":
        raise HeadError(f"the tensor {name[:40]} must be F32; it is {tensor['dtype']}")
    return np.frombuffer(tensor["data"], "<f4").astype(np.float32).reshape(tensor["shape"])


def _loaded(metadata: Mapping[str, str], name: str, kind: type, default: str = "null") -> Any:
    try:
        value = json.loads(metadata.get(name, default))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise HeadError(f"the metadata {name!r} must be a JSON {'list' if kind is list else 'object'}")
    return value
