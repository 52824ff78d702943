"""The interface between the engine and tracing: what is recorded of an image, and a tracer that records nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(slots=True)
class ImageTrace:
    """The stages of one image, on the monotonic clock in seconds; None for a stage that was not reached."""

    began: float
    decode_began: float | None = None
    decode_ended: float | None = None
    decode_s: float = 0.0
    preprocess_s: float = 0.0
    queued: float | None = None
    device_began: float | None = None
    batch_size: int = 0
    joined: bool = False  # the work was another request's
    error: str | None = None  # code


class Tracer(Protocol):
    """Records requests and images."""

    enabled: bool

    def trace_id(self) -> str | None:
        """The trace of the current request."""

    def annotate(self, fields: Mapping[str, object]) -> None:
        """Add the fields of a request's log line to its span."""

    def image(self, trace: ImageTrace) -> None:
        """Record the spans of an image of the current request, which ends now."""

    def fastapi(self) -> Any:
        """The `telemetry` argument of the FastAPI application."""

    def close(self) -> None:
        """Send the remaining spans. Blocks."""


class NoTracer:
    """Records nothing."""

    enabled = False

    def trace_id(self) -> str | None:
        """Return None."""
        return None

    def annotate(self, fields: Mapping[str, object]) -> None:
        """Do nothing."""

    def image(self, trace: ImageTrace) -> None:
        """Do nothing."""

    def fastapi(self) -> Any:
        """Switch FastAPI's telemetry off; otherwise it would use the tracer provider of the process."""
        return {"tracing": False, "metrics": False, "logs": False}

    def close(self) -> None:
        """Do nothing."""
