"""The routes of the Open Inference Protocol v2 (KServe, Triton): health, metadata, config, statistics and infer.

Each model has two names, because the protocol allows one data type for an input. NAME takes encoded images (BYTES).
NAME-tensor takes pixels (UINT8 NHWC of any size), which are preprocessed like a decoded image. Both names can be
followed by ~HEAD, the name of a custom head. The format of tensors is in `service.api.oip.tensors`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from service import __version__
from service.api import dependencies, health
from service.api.compat.schemas import FILE, OIP_BODY, OipAnswer, OipMetadata, body_of
from service.api.oip import tensors
from service.api.oip.forms import HEADER, Form, form_of
from service.api.oip.statistics import AllStatistics, Statistics
from service.api.oip.tensors import Output, OutputHeader, RequestHeader, Tensor
from service.api.record import labelled, record_of
from service.api.request.body import read_body
from service.api.request.image_fields import whole
from service.api.responses import OCTETS, JsonResponse, normalised, rows
from service.api.routing import DirectRoute
from service.api.schemas import INFERENCE, Responses, problems
from service.engine.engine import Answer
from service.engine.models import described
from service.errors import MalformedBody, NotReady, ServiceError, UnsupportedInput
from service.heads import store
from service.jobs import Given, Task
from service.status import ModelState

router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=DirectRoute)

HIGHEST_PRIORITY = 1  # larger numbers are less urgent; 0 means the default
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")
_MODEL = "/models/{model}"
_VERSIONED = "/models/{model}/versions/{version}"
_TENSOR = "-tensor"
_UNKNOWN, _UNREADY = problems(404), problems(404, 503)
_INFER = body_of({"application/json": OIP_BODY, OCTETS: FILE})
_BINARY: Responses = {
    200: {"content": {OCTETS: {"schema": FILE}}, "description": f"With `{HEADER}`: JSON, then raw tensors."}
}


@dataclass(frozen=True, slots=True)
class Served:
    """One of the two names of a model, and its input."""

    name: str
    state: ModelState
    pixels: bool = False

    @property
    def version(self) -> str:
        """The version that is served."""
        return self.state.id.version

    @property
    def chosen(self) -> str:
        """The model, and the head if the name has one."""
        return self.state.id.name + self._head

    @property
    def tensor_name(self) -> str:
        """The name that takes pixels."""
        return self.state.id.name + _TENSOR + self._head

    @property
    def _head(self) -> str:
        _, mark, head = self.name.partition("~")
        return mark + head

    @property
    def datatype(self) -> str:
        """The data type of the input."""
        return "UINT8" if self.pixels else "BYTES"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the input; the batch dimension is the first."""
        return (-1, -1, -1, 3) if self.pixels else (-1, 1)

    @property
    def metadata(self) -> dict[str, Any]:
        """The description of the input in the metadata."""
        return {"name": "image", "datatype": self.datatype, "shape": self.shape}


@router.get("", summary="Server metadata")
@router.get("/", include_in_schema=False)
async def server_metadata(request: Request) -> dict[str, Any]:
    """The server's name, its version, and the supported extensions of the protocol."""
    control = dependencies.engine_of(request).settings.model_control == "explicit"
    extensions = (*EXTENSIONS, "model_repository") if control else EXTENSIONS
    return {"name": "vim-server", "version": __version__, "extensions": extensions}


@router.get("/health/live", summary="Server liveness", responses=problems(503))
async def live(request: Request) -> dict[str, bool]:
    """Liveness, as `/livez`, in the format of the protocol."""
    await health.livez(request)
    return {"live": True}


@router.get("/health/ready", summary="Server readiness", responses=problems(503))
async def ready(request: Request) -> dict[str, bool]:
    """Readiness, as `/readyz`, in the format of the protocol."""
    await health.readyz(request)
    return {"ready": True, "live": True}


@router.get("/models/stats", summary="Statistics of all models")
async def all_statistics(request: Request) -> dict[str, Any]:
    """Statistics of all names since the start, for requests of this protocol: counts, and nanoseconds by stage."""
    models = dependencies.engine_of(request).backend.state.models
    return {"model_stats": [_counted(request, name) for one in models for name in _names(one)]}


@router.get(_MODEL, summary="Model metadata", response_model=OipMetadata, responses=_UNREADY)
@router.get(_VERSIONED, include_in_schema=False)
async def model_metadata(request: Request, model: str) -> Response:
    """Inputs and outputs of NAME (encoded images) or NAME-tensor (pixels)."""
    served = await _served(request, model)
    return JsonResponse(
        {
            "name": served.name,
            "versions": [served.version],
            "platform": "vim_server",
            "inputs": [served.metadata],
            "outputs": _outputs(served),
        }
    )


@router.get(_MODEL + "/ready", summary="Model readiness", responses=_UNREADY)
@router.get(_VERSIONED + "/ready", include_in_schema=False)
async def model_ready(request: Request, model: str) -> dict[str, Any]:
    """Readiness of one model, by one of its two names."""
    served = await _served(request, model)
    health.check_ready(dependencies.engine_of(request), served.state)
    return {"name": served.name, "ready": True}


@router.get(_MODEL + "/config", summary="Model configuration", response_model=dict[str, Any], responses=_UNREADY)
@router.get(_VERSIONED + "/config", include_in_schema=False)
async def model_config(request: Request, model: str) -> Response:
    """The model configuration that Triton's clients and perf_analyzer request first."""
    served = await _served(request, model)
    settings = dependencies.engine_of(request).settings
    outputs = [_configured(one) for one in _outputs(served)]
    return JsonResponse(
        {
            "name": served.name,
            "platform": "vim_server",
            "backend": "vim_server",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": min(settings.max_images, settings.queue_images),
            "input": [_configured(served.metadata)],
            "output": outputs,
            "dynamic_batching": {},
            "parameters": {"fingerprint": {"string_value": described(served.state).fingerprint}},
        }
    )


@router.get(_MODEL + "/stats", summary="Statistics of a model", responses=_UNKNOWN)
@router.get(_VERSIONED + "/stats", include_in_schema=False)
async def statistics(request: Request, model: str) -> dict[str, Any]:
    """The statistics of one of the two names of a model."""
    return {"model_stats": [_counted(request, await _served(request, model))]}


@router.post(
    _MODEL + "/infer",
    summary="Run inference",
    response_model=OipAnswer,
    responses=problems(*INFERENCE) | _BINARY,
    openapi_extra=_INFER,
)
@router.post(_VERSIONED + "/infer", response_class=Response, include_in_schema=False)
@labelled("oip", "classify")
async def infer(request: Request, model: str) -> Response:
    """Scores, embedding and label of each image, as JSON or as raw tensors."""
    served = await _served(request, model)
    counts = _statistics(request, served)
    try:
        return await _infer(request, served, counts)
    except ServiceError:
        counts.failed(time.monotonic() - record_of(request.scope).started)
        raise


async def _infer(request: Request, served: Served, counts: Statistics) -> Response:
    engine = dependencies.engine_of(request)
    dependencies.choose(request, Task("embed"), served.chosen, request.path_params.get("version"))
    body = await read_body(request)
    limit = engine.settings.max_images
    form = form_of(request)
    if form.is_quick(body):
        header, images = _parse(body, form, served, limit)
    else:
        header, images = await dependencies.in_thread(request, _parse, body, form, served, limit)
    names = [one["name"] for one in _outputs(served)]
    wanted = header.outputs or [OutputHeader(name=name) for name in names]
    task = _task(wanted, names)
    record = record_of(request.scope)
    assert record.labels is not None
    record.labels = record.labels._replace(op=task.op)
    if header.parameters.priority > HIGHEST_PRIORITY:
        record.request_class = "bulk"
    answer = await dependencies.infer(request, images, task, header.parameters.timeout / 1e6 or None)
    start = time.monotonic()
    with engine.metrics.timed("postprocess"):
        response = _render(answer, served, header, _tensors_of(answer, task, header, wanted), form)
    counts.succeeded(answer, time.monotonic() - record_of(request.scope).started, time.monotonic() - start)
    return response


def _parse(body: bytes, form: Form, served: Served, max_images: int) -> tuple[RequestHeader, Sequence[Given]]:
    header, given = form.read(body)
    if [one.name for one in given] != ["image"]:
        names = ", ".join(repr(one.name[:100]) for one in given)
        raise MalformedBody(f"{served.name} takes one input, 'image'; the request has {names or 'none'}")
    _check_type(given[0], served)
    return header, whole(tensors.images_of(given[0], max_images))


def _check_type(tensor: Tensor, served: Served) -> None:
    if tensor.datatype != served.datatype:
        raise UnsupportedInput(
            f"{served.name} takes {served.datatype}, not {tensor.datatype[:20]}: send encoded images as BYTES to "
            f"{served.chosen}, or pixels of any size as UINT8 [N, height, width, 3] to {served.tensor_name}; "
            "the server preprocesses both"
        )


def _task(wanted: Sequence[OutputHeader], known: Sequence[str]) -> Task:
    names = {one.name for one in wanted}
    if unknown := sorted(names - set(known)):
        raise MalformedBody(f"there is no output {unknown[0][:100]!r}; the outputs are {', '.join(known)}")
    if any(one.parameters.classification and one.name != "scores" for one in wanted):
        raise UnsupportedInput("the parameter classification is allowed for the output scores only")
    return Task("embed") if names == {"embedding"} else Task("classify", embedding_too="embedding" in names)


def _tensors_of(answer: Answer, task: Task, header: RequestHeader, wanted: Sequence[OutputHeader]) -> list[Output]:
    values = np.stack(rows(answer))
    classes = answer.model.classes if task.op == "classify" else 0
    labels = answer.model.labels
    scores, embeddings = values[:, :classes], values[:, classes:]
    return [_tensor(one, scores, embeddings, labels, header.is_binary(one)) for one in wanted]


def _tensor(
    wanted: OutputHeader, scores: np.ndarray, embeddings: np.ndarray, labels: Sequence[str], binary: bool
) -> Output:
    name = wanted.name
    if name == "embedding":
        values = np.stack([normalised(row) for row in embeddings])
        return Output(name, values.shape, values, binary)
    if name == "labels":
        return Output(name, (len(scores), 1), [labels[best] for best in scores.argmax(axis=1)], binary)
    if k := min(wanted.parameters.classification, scores.shape[1]):
        return Output(name, (len(scores), k), _classified(scores, k, labels), binary)
    return Output(name, scores.shape, scores, binary)


def _classified(scores: np.ndarray, k: int, labels: Sequence[str]) -> list[str]:
    """The classification extension: `value:index:label` of the k best classes, best first."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [f"{row[i]:f}:{i}:{labels[i]}" for row, order in zip(scores, best, strict=True) for i in order]


def _render(answer: Answer, served: Served, header: RequestHeader, outputs: Sequence[Output], form: Form) -> Response:
    head: dict[str, Any] = {"model_name": served.name, "model_version": answer.version}
    if header.id is not None:
        head["id"] = header.id
    head["parameters"] = {"fingerprint": answer.model.fingerprint}
    return form.write(*tensors.encode(head, outputs))


def _names(state: ModelState) -> tuple[Served, Served]:
    name = state.id.name
    return Served(name, state), Served(name + _TENSOR, state, pixels=True)


async def _served(request: Request, model: str) -> Served:
    """The model that is requested by one of its two names, which ~HEAD may follow. Raises what `find` raises."""
    version = request.path_params.get("version")
    name, head = store.split(model)
    names = [served for one in dependencies.engine_of(request).backend.state.models for served in _names(one)]
    served = next((one for one in names if one.name == name), None)
    own = name if served is None else served.state.id.name
    state = await dependencies.find(request, own if head is None else f"{own}~{head}", version)
    if served is None:
        raise NotReady("the models are not known yet", retry_after_s=1)
    return Served(model, state, served.pixels)


def _outputs(served: Served) -> list[dict[str, Any]]:
    """The outputs of the model; without a classifier head only the embedding. Raises NotReady before it is loaded."""
    model = described(served.state)
    scores = {"name": "scores", "datatype": "FP32", "shape": (-1, model.classes)}
    embedding = {"name": "embedding", "datatype": "FP32", "shape": (-1, model.embedding_dim)}
    labels = {"name": "labels", "datatype": "BYTES", "shape": (-1, 1)}
    return [scores, embedding, labels] if model.classes else [embedding]


def _configured(one: dict[str, Any]) -> dict[str, Any]:
    """Convert metadata to config: Triton's names of types, and no batch dimension."""
    kind = {"BYTES": "STRING"}.get(one["datatype"], one["datatype"])
    return {"name": one["name"], "data_type": f"TYPE_{kind}", "dims": one["shape"][1:]}


def _statistics(request: Request, served: Served) -> Statistics:
    statistics: AllStatistics = request.app.state.statistics
    return statistics.of(served.state.id.number, pixels=served.pixels)


def _counted(request: Request, served: Served) -> dict[str, Any]:
    return _statistics(request, served).as_dict(served.name, served.version)
