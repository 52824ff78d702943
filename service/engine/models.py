"""Finds loaded models by name, and keeps what an HTTP process needs of each: decoders and the pixels of its slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np

from model.preprocessing.recipe import Crop, Preprocess
from service.engine.backend import Backend
from service.errors import NotReady, UnknownModel
from service.images.decode import Decoder
from service.status import BackendState, ModelInfo, ModelState
from service.telemetry.metrics import Metrics
from service.telemetry.model_metrics import ModelMetrics

MOST_NAMES = 10  # an error lists this many models


class Wanted(NamedTuple):
    """The model that a request names; None for the default model, and for the version that is served."""

    name: str | None = None
    version: str | None = None


DEFAULT = Wanted()


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What an HTTP process needs of one loaded model."""

    key: int
    number: int
    decoders: Mapping[Crop, Decoder]
    pixels: np.ndarray  # of the slots, uint8 (slots, size, size, 3)
    metrics: ModelMetrics


class Models:
    """The parts of the models that this process has used."""

    def __init__(self, backend: Backend, metrics: Metrics, make_decoder: Callable[[Preprocess], Decoder]) -> None:
        self._backend = backend
        self._metrics = metrics
        self._make_decoder = make_decoder
        self._parts: dict[int, ModelParts] = {}  # by key

    def of(self, state: ModelState) -> ModelParts:
        """The parts of a model that has been ready."""
        found = self._parts.get(state.id.key)
        if found is None:
            self._drop_replaced()
            found = self._parts[state.id.key] = self._make(state)
        return found

    def _drop_replaced(self) -> None:
        """Drop the parts of models that were unloaded or replaced. A request that still runs has its own reference."""
        kept = {one.id.key for one in self._backend.state.models}
        self._parts = {key: one for key, one in self._parts.items() if key in kept}

    def _make(self, state: ModelState) -> ModelParts:
        assert state.model is not None
        assert state.area is not None
        recipe = Preprocess.from_dict(state.model.preprocess)
        decoders = {crop: self._make_decoder(dataclasses.replace(recipe, crop=crop)) for crop in get_args(Crop)}
        pixels, metrics = self._backend.slots.views(state.area), self._metrics.model(state.id.name)
        return ModelParts(state.id.key, state.id.number, decoders, pixels, metrics)


def find(state: BackendState, wanted: Wanted) -> ModelState:
    """The state of a model. Raises UnknownModel if it is not loaded, in this version."""
    found = state.find(wanted.name)
    if found is None:
        raise _unknown(state, wanted)
    if wanted.version not in (None, found.id.version):
        raise UnknownModel(
            f"Request for unknown model: {found.id.name!r} version {str(wanted.version)[:20]!r} is not found; "
            f"the version that is served is {found.id.version}"
        )
    return found


def described(state: ModelState) -> ModelInfo:
    """The description of a model. Raises NotReady before it is loaded."""
    if state.model is None:
        raise NotReady(state.reason, retry_after_s=1)
    return state.model


def _unknown(state: BackendState, wanted: Wanted) -> UnknownModel:
    served = ", ".join([repr(one.id.name) for one in state.models][:MOST_NAMES]) or "no model"
    if wanted.name is None:
        return UnknownModel(f"the default model is not loaded; name another; this server has {served}")
    return UnknownModel(f"Request for unknown model: {wanted.name[:100]!r} is not found; this server has {served}")
