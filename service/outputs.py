"""Results -> response bodies of the native API. Shapes of other contracts belong to their own modules in `api/`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from service.engine import Answer, Outcome
from service.errors import ServiceError
from service.jobs import Timings


class JsonResponse(Response):
    """JSON by orjson, which writes numpy arrays without a Python object for every float."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode; NaN and infinity would become null, so results are checked to be finite before."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def top_k(scores: np.ndarray, k: int, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The k best classes, best first; ties by index. `k` is clamped to the number of classes."""
    best = np.argsort(-scores, kind="stable")[:k]
    return [{"index": int(i), "label": labels[i], "score": float(scores[i])} for i in best]


def normalised(values: np.ndarray) -> np.ndarray:
    """Scaled to unit length (L2); a zero vector stays zero."""
    length = float(np.linalg.norm(values.astype(np.float64)))
    unit: np.ndarray = (values / length).astype(np.float32) if length else values
    return unit


def classification(index: int, outcome: Outcome, k: int, labels: Sequence[str]) -> dict[str, Any]:
    """One item of a classify response."""
    if isinstance(outcome, ServiceError):
        return _failed(index, outcome)
    return {"index": index, "predictions": top_k(outcome.values, k, labels)}


def embedding(index: int, outcome: Outcome, pooling: str, normalize: bool) -> dict[str, Any]:
    """One item of an embed response."""
    if isinstance(outcome, ServiceError):
        return _failed(index, outcome)
    values = normalised(outcome.values) if normalize else outcome.values
    return {"index": index, "embedding": values, "dim": len(values), "pooling": pooling, "normalized": normalize}


def timings_ms(timings: Timings) -> dict[str, float]:
    """Milliseconds by stage, to the microsecond, and the size of the batch."""
    stages = {name.removesuffix("_s"): getattr(timings, name) for name in Timings.__slots__ if name.endswith("_s")}
    return {name: round(1000 * seconds, 3) for name, seconds in stages.items()} | {"batch_size": timings.batch_size}


def respond(answer: Answer, model: dict[str, Any], results: list[dict[str, Any]]) -> Response:
    """The native response. Raises the first image's error when no image succeeded."""
    if all(isinstance(outcome, ServiceError) for outcome in answer.outcomes):
        first = answer.outcomes[0]
        assert isinstance(first, ServiceError)
        raise first
    identity = {"name": model["name"], "fingerprint": model["fingerprint"]}
    body = {"model": identity, "results": results, "timings_ms": timings_ms(answer.timings)}
    return JsonResponse(body)


def _failed(index: int, error: ServiceError) -> dict[str, Any]:
    return {"index": index, "error": {"code": error.code, "message": error.detail}}
