"""Values and the protocol of a command's backend: what a command asks for, and what it gets for each image.

`service.cli.local` starts a device process of its own, `service.cli.remote` asks a server; `service.cli.run` uses one
of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from model.preprocessing.recipe import Crop
from service.jobs import Pooling

Op = Literal["classify", "embed"]
Embedding = NDArray[np.float32]


class CommandError(Exception):
    """The command cannot continue; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What the command requests for every image."""

    op: Op
    top_k: int = 5
    pooling: Pooling = "cls"
    normalize: bool = True
    crop: Crop = "center"


@dataclass(frozen=True, slots=True)
class Model:
    """The model that gave an answer; the fingerprint covers weights, configuration and preprocessing."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, values: dict[str, Any]) -> Model:
        """Read the member `model` of an answer or of `/info`."""
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
    """Why one image has no answer; the other images are still answered."""

    code: str
    message: str


Outcome = Classified | Embedded | Failed


class Backend(Protocol):
    """An object that answers images."""

    @property
    def info(self) -> dict[str, Any]:
        """The content of `/info`."""

    @property
    def max_bytes(self) -> int:
        """The largest file that it accepts."""

    @property
    def in_flight(self) -> int:
        """How many images to ask for at once."""

    async def infer(self, data: bytes, ask: Ask) -> Outcome:
        """Answer one image file. Raises CommandError when every other image would fail in the same way."""
