"""Options of the client's methods."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Pooling = Literal["cls", "mean"]
Crop = Literal["center", "full", "pad"]


class ClassifyManyOptions(TypedDict, total=False):
    """Options of `AsyncClient.classify_many`."""

    top_k: int
    crop: Crop


class ClassifyOptions(ClassifyManyOptions, total=False):
    """Options of `AsyncClient.classify`."""

    bulk: bool


class EmbedManyOptions(TypedDict, total=False):
    """Options of `AsyncClient.embed_many`."""

    pooling: Pooling
    normalize: bool
    crop: Crop


class EmbedOptions(EmbedManyOptions, total=False):
    """Options of `AsyncClient.embed`."""

    bulk: bool


def cropped(crop: Crop) -> dict[str, Any]:
    """The option, unless it is the default, which older servers do not accept by name."""
    return {} if crop == "center" else {"crop": crop}
