"""Builds the responses of the native API; has helpers for all contracts: JSON, top-k, normalisation, base64."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from service.api.dependencies import model_headers
from service.api.schemas import BulkOptions, ClassifyOptions, EmbedOptions
from service.engine.engine import Answer
from service.errors import ServiceError
from service.heads import scoring
from service.heads.store import NamedHead
from service.jobs import Outcome, Timings
from service.status import ModelInfo
from service.telemetry.metrics import Metrics

OCTETS = "application/octet-stream"


def to_json(content: Any) -> bytes:
    """Encode as JSON; numpy arrays are allowed."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


class JsonResponse(Response):
    """A JSON response by orjson, which encodes numpy arrays without a Python object for every float."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the content. NaN and infinity would become null; results were checked to be finite before."""
        return to_json(content)


def top_k(scores: np.ndarray, k: int, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The k best classes, best first; equal scores by index. At most as many as there are classes."""
    best = np.argsort(-scores, kind="stable")[:k]
    return [{"index": int(i), "label": labels[i], "score": float(scores[i])} for i in best]


def normalised(values: np.ndarray) -> np.ndarray:
    """Scale to unit length (L2); a zero vector stays zero."""
    length = float(np.linalg.norm(values.astype(np.float64)))
    unit: np.ndarray = (values / length).astype(np.float32) if length else values
    return unit


def classifications(answer: Answer, heads: Sequence[NamedHead], options: ClassifyOptions, metrics: Metrics) -> Response:
    """The response of /v1/classify."""
    results = classified(answer.outcomes, answer.model, heads, options)
    fingerprints = {"heads": {one.name: one.head.fingerprint for one in heads}} if heads else {}
    return _respond(answer, results, metrics, fingerprints)


def embeddings(answer: Answer, options: EmbedOptions, metrics: Metrics) -> Response:
    """The response of /v1/embed in JSON."""
    return _respond(answer, [embedding(i, one, options) for i, one in enumerate(answer.outcomes)], metrics)


def classified(
    outcomes: Sequence[Outcome], model: ModelInfo, heads: Sequence[NamedHead], options: ClassifyOptions | BulkOptions
) -> list[dict[str, Any]]:
    """The items of a classify response: the best classes of each image, by the model or by custom heads."""
    if len(heads) <= 1:
        labels = heads[0].head.labels if heads else model.labels
        scored = scoring.scored(outcomes, heads)[0] if heads else outcomes
        return [{"index": i} | _classes(one, labels, options) for i, one in enumerate(scored)]
    by_image = zip(outcomes, *scoring.scored(outcomes, heads), strict=True)
    return [{"index": i} | _classes_by_heads(heads, *one, options=options) for i, one in enumerate(by_image)]


def _classes_by_heads(
    heads: Sequence[NamedHead], features: Outcome, *scored: Outcome, options: ClassifyOptions | BulkOptions
) -> dict[str, Any]:
    if isinstance(features, ServiceError):
        return {"error": _error(features)}
    pairs = zip(heads, scored, strict=True)
    return {"heads": {one.name: _classes(outcome, one.head.labels, options) for one, outcome in pairs}}


def _classes(outcome: Outcome, labels: Sequence[str], options: ClassifyOptions | BulkOptions) -> dict[str, Any]:
    if isinstance(outcome, ServiceError):
        return {"error": _error(outcome)}
    found: dict[str, Any] = {"predictions": top_k(outcome.values, options.top_k, labels)}
    if outcome.in_domain is not None:
        found["in_domain"] = round(outcome.in_domain, 4)
        if options.reject is not None:
            found["label"] = found["predictions"][0]["label"] if outcome.in_domain >= options.reject else None
    return found


def embedding(index: int, outcome: Outcome, options: EmbedOptions) -> dict[str, Any]:
    """One item of an embed response."""
    if isinstance(outcome, ServiceError):
        return {"index": index, "error": _error(outcome)}
    values = normalised(outcome.values) if options.normalize else outcome.values
    return {
        "index": index,
        "embedding": as_base64(values) if options.encoding == "base64" else values,
        "dim": len(values),
        "pooling": options.pooling,
        "normalized": options.normalize,
        "crop": options.crop,
    }


def raw_embeddings(answer: Answer, options: EmbedOptions) -> Response:
    """All embeddings as little-endian float32, row after row; the header `X-Shape` has N,D, `X-Crop` the crop.

    The format cannot hold errors, so one bad image fails the whole request; the error has the index of the image.
    """
    found = [normalised(row) if options.normalize else row for row in rows(answer)]
    body = np.stack(found).astype("<f4")
    shape = ",".join(map(str, body.shape))
    headers = {"X-Shape": shape, "X-Crop": options.crop} | model_headers(answer.model)
    return Response(body.tobytes(), media_type=OCTETS, headers=headers)


def rows(answer: Answer) -> list[np.ndarray]:
    """The values of every image, for contracts without errors per image: raises the first error, with its index."""
    return [_row(index, outcome, len(answer.outcomes)) for index, outcome in enumerate(answer.outcomes)]


def _row(index: int, outcome: Outcome, count: int) -> np.ndarray:
    if isinstance(outcome, ServiceError):
        raise outcome.about(f"image {index}") if count > 1 else outcome
    return outcome.values


def as_base64(values: np.ndarray) -> str:
    """Encode the values as little-endian float32 in base64."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def timings_ms(timings: Timings) -> dict[str, float]:
    """Milliseconds by stage, to the microsecond, and the size of the batch."""
    seconds = {
        "decode": timings.decode_s,
        "preprocess": timings.preprocess_s,
        "queue": timings.queue_s,
        "infer": timings.infer_s,
        "total": timings.total_s,
    }
    return {stage: round(1000 * value, 3) for stage, value in seconds.items()} | {"batch_size": timings.batch_size}


def _respond(
    answer: Answer, results: list[dict[str, Any]], metrics: Metrics, more: Mapping[str, Any] | None = None
) -> Response:
    """The native response, which may have errors in the place of images; they are counted here.

    If every image failed, raises the first error, which contains the errors of all images. Then, and where one bad
    image fails its request, `service.api.errors` counts the request once.
    """
    errors = [outcome for outcome in answer.outcomes if isinstance(outcome, ServiceError)]
    if len(errors) == len(answer.outcomes):
        raise errors[0].with_items(results) if len(errors) > 1 else errors[0]
    for one in errors:
        metrics.refused(one)
    identity = {"name": answer.model.name, "fingerprint": answer.model.fingerprint}
    times = timings_ms(answer.timings)
    content = {"model": identity, **(more or {}), "results": results, "timings_ms": times, "batches": answer.batches}
    return JsonResponse(content)


def _error(error: ServiceError) -> dict[str, Any]:
    return {"code": error.code, "message": error.detail, "status": error.status}
