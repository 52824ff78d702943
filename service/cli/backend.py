"""What the command line asks and gets, whoever computes it: `local` (a device process of our own) or `remote` (a URL).

Values and the seam between the two only; `run` drives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.jobs import Pooling

Op = Literal["classify", "embed"]
Embedding = NDArray[np.float32]


class CommandError(Exception):
    """The command cannot go on; the message is for the person who called it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is wanted of every image."""

    op: Op
    top_k: int = 5
    pooling: Pooling = "cls"
    normalize: bool = True


@dataclass(frozen=True, slots=True)
class Model:
    """Which weights, configuration and preprocessing made an answer."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, values: dict[str, Any]) -> Model:
        """From the member `model` of an answer or of `/info`."""
        return cls(str(values["name"]), str(values["fingerprint"]))

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint})"


@dataclass(frozen=True, slots=True)
class Classified:
    """One image's classes, best first, each {"index", "label", "score"}."""

    model: Model
    predictions: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Embedded:
    """One image's embedding (D,)."""

    model: Model
    values: Embedding


@dataclass(frozen=True, slots=True)
class Failed:
    """Why one image has no answer; the others go on."""

    code: str
    message: str


Outcome = Classified | Embedded | Failed


class Backend(Protocol):
    """Something that answers images."""

    @property
    def info(self) -> dict[str, Any]:
        """What `/info` says."""

    @property
    def max_bytes(self) -> int:
        """Largest file that it takes."""

    @property
    def in_flight(self) -> int:
        """How many images keep it busy."""

    async def infer(self, data: bytes, ask: Ask) -> Outcome:
        """One image file's answer. Raises CommandError when no other image would fare better."""
