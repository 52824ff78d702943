"""The format of the log: readable lines on a terminal, one JSON object per line elsewhere.

Use: `logging.getLogger(__name__).info("message", extra={"fields": {"images": 3}})`. Of bytes only the length is logged.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

_MAX_FIELD = 1000  # characters
# Control characters could move a terminal's cursor or forge lines. Newlines and tabs of a message are kept.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def configure(level: str = "info", stream: TextIO | None = None, process: str = "") -> None:
    """Send every logger, uvicorn's too, through one handler to `stream` (stderr). May be called again.

    `process` is added to every line; it tells apart processes that write to the same stream.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter(process) if stream.isatty() else JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    logging.getLogger("httpcore2").setLevel(logging.INFO)  # below it are headers, with signed URLs
    _route_uvicorn()


def _route_uvicorn() -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # the service logs requests itself, with more detail


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the record's fields, and the exception if any."""

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; a field with the name of a standard member is dropped."""
        line = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | {name: value for name, value in _fields(record).items() if name not in line})


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, then the fields as name=value; an exception follows on its own lines."""

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = f" [{process}]" if process else ""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record in one line, or more if the message has more."""
        fields = "".join(f" {name}={json.dumps(value)}" for name, value in _fields(record).items())
        time = _time(record).astimezone().strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():<8} {record.name}{self._process}: {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line.translate(_CONTROLS)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {str(name): _json_value(value) for name, value in getattr(record, "fields", {}).items()}


def _json_value(value: object) -> Any:
    """A value that JSON can represent: no bytes, no NaN, no long texts."""
    if isinstance(value, str):
        return _truncated(value)
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{memoryview(value).nbytes} bytes>"
    if isinstance(value, Mapping):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return _truncated(str(value))


def _truncated(text: str) -> str:
    return text if len(text) <= _MAX_FIELD else text[:_MAX_FIELD] + "…"
