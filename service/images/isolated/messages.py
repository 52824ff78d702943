"""The messages between an HTTP process and a process that decodes images for it."""

from __future__ import annotations

from typing import Literal

from model.preprocessing.recipe import Preprocess
from service.images.header import Header
from service.ipc import Message


class Decode(Message, frozen=True):
    """A file, the name of its format, what its header says, and how to preprocess it."""

    data: bytes
    name: str
    header: Header
    recipe: Preprocess


class Decoded(Message, frozen=True):
    """The preprocessed pixels (size, size, 3), the seconds since the file was decoded, and its colour profile."""

    pixels: bytes
    preprocess_s: float
    profile: bytes


class Refused(Message, frozen=True):
    """The file cannot be decoded."""

    kind: Literal["unsupported", "out_of_memory"]
    detail: str


FromDecoder = Decoded | Refused
