"""Options of the client's methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

Pooling = Literal["cls", "mean"]
Crop = Literal["center", "full", "pad"]
Heads = str | Sequence[str] | None  # names of custom heads


class InfoOptions(TypedDict, total=False):
    """Options of `AsyncClient.info`; the other methods have them too."""

    model: str | None


class ClassifyManyOptions(InfoOptions, total=False):
    """Options of `AsyncClient.classify_many`."""

    top_k: int
    crop: Crop
    head: Heads


class ClassifyOptions(ClassifyManyOptions, total=False):
    """Options of `AsyncClient.classify`."""

    bulk: bool


class EmbedManyOptions(InfoOptions, total=False):
    """Options of `AsyncClient.embed_many`."""

    pooling: Pooling
    normalize: bool
    crop: Crop


class EmbedOptions(EmbedManyOptions, total=False):
    """Options of `AsyncClient.embed`."""

    bulk: bool


class FolderOptions(InfoOptions, total=False):
    """Options of `AsyncClient.embed_folder`."""

    progress: bool


def newer(model: str | None, crop: Crop, head: Heads = None) -> dict[str, Any]:
    """The options that older servers do not accept; each is left out if it is the default."""
    given = {"model": model, "crop": None if crop == "center" else crop, "head": head or None}
    return {name: value for name, value in given.items() if value is not None}
