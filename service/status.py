"""The served model and the state of the devices: the values of `/info`, of readiness, and of every answer's `model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from service.jobs import Area, Memory

IndexState = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
Phase = Literal["starting", "ready", "recovering", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The device that a model runs on."""

    name: str
    type: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model, as its device process describes it."""

    name: str
    family: str  # vim, videomamba or mamba-reg
    fingerprint: str
    classes: int  # 0 without a classifier head
    scores: Literal["softmax", "sigmoid"]
    embedding_dim: int  # with pooling "cls"
    mean_embedding_dim: int  # with pooling "mean"
    image_size: int  # side of the square image, pixels
    preprocess: Mapping[str, Any]  # of `model.Preprocess.to_dict`
    labels: tuple[str, ...]  # one for each class
    labels_source: str
    in_domain: bool  # whether it can tell how alike an image is to those that it was taught with
    source: str
    weights: str
    parameters: int
    config: Mapping[str, Any]
    assumptions: tuple[str, ...]
    dtype: str
    device: DeviceInfo
    scan: Mapping[str, str]  # name, why, path
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The members of `/info` that describe the model and where it runs."""
        return {
            "model": {
                "name": self.name,
                "family": self.family,
                "fingerprint": self.fingerprint,
                "source": self.source,
                "weights": self.weights,
                "parameters": self.parameters,
                "classes": self.classes,
                "scores": self.scores,
                "embedding_dim": self.embedding_dim,
                "mean_embedding_dim": self.mean_embedding_dim,
                "config": self.config,
                "assumptions": self.assumptions,
                "labels": self.labels_source,
                "in_domain": self.in_domain,
            },
            "preprocess": self.preprocess,
            "device": asdict(self.device),
            "dtype": self.dtype,
            "scan": self.scan,
            "versions": self.versions,
        }


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device process as `/info` shows it."""

    name: str
    up: bool = False
    restarts: int = 0
    last_reason: str = ""
    limit: int = 1  # images in a batch; falls when memory runs out
    scan: Mapping[str, str] = field(default_factory=dict)  # as chosen by its self-test
    runner: Mapping[str, str] = field(default_factory=dict)
    batch_seconds: Mapping[int, float] = field(default_factory=dict)  # of the warm-up, by batch size
    memory: Mapping[Memory, int] = field(default_factory=dict)  # bytes of the device's own memory, after the warm-up
    host_bytes: int = 0  # memory of the device process, after the warm-up


class ModelId(NamedTuple):
    """Identifies one load of one version of a model."""

    name: str = ""
    version: str = "1"
    key: int = 0  # of this load; a reload of the same version has another
    number: int = 0  # of the name; shared counts are kept by it


_ALONE = ModelId()


@dataclass(frozen=True, slots=True)
class ModelState:
    """One load of a model, and whether it is ready. Replaced as a whole when something changes."""

    id: ModelId = _ALONE
    phase: Phase = "starting"
    failure: str = ""  # why the model cannot be served, for the log
    has_been_ready: bool = False
    model: ModelInfo | None = None
    devices: tuple[DeviceStatus, ...] = ()
    max_batch: int = 1  # the largest batch that any device receives now
    least_image_s: float = 0.0  # seconds per image when all devices run their best batch size, measured in the warm-up
    area: Area | None = None  # of its pixels, once it is loaded

    @property
    def reason(self) -> str:
        """Why the model does not serve, for clients. Paths and details are for the log only."""
        loading = "warmed up" if self.model else "loaded"
        return {
            "failed": "the model cannot be served; the server's log has the reason",
            "draining": "the service is shutting down",
            "recovering": "a device process is being replaced",
        }.get(self.phase, f"the model is being {loading}")

    def to_json(self) -> dict[str, Any]:
        """The members of `/info` about model and devices. The model must be loaded."""
        assert self.model is not None
        first = self.devices[0]
        return self.model.to_json() | {
            "scan": first.scan or self.model.scan,
            "runner": first.runner,
            "batch_seconds": first.batch_seconds,
            "devices": [
                {"name": one.name, "up": one.up, "restarts": one.restarts, "last_reason": one.last_reason or None}
                for one in self.devices
            ],
        }


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model in the index of the repository extension (Open Inference Protocol)."""

    name: str
    version: str
    state: IndexState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BackendState:
    """All models of a backend. Replaced as a whole when something changes."""

    default: str = ""  # the model of requests that name none
    models: tuple[ModelState, ...] = (ModelState(),)  # one for each name; a reload replaces it
    serial: int = 0  # of the set of loaded models; grows with every switch to another version

    def find(self, name: str | None = None) -> ModelState | None:
        """The model with this name, or the default one; None if it is not loaded.

        Before the models are known, there is one model without a name, which is starting. It is found for every name.
        """
        if not self.default:
            return self.models[0]
        wanted = self.default if name is None else name
        return next((one for one in self.models if one.id.name == wanted), None)
