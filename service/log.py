"""How the log looks: readable lines on a terminal, one JSON object a line elsewhere.

Use: `logging.getLogger(__name__).info("message", extra={"fields": {"images": 3}})`. Bytes never reach the log, only
their length does. Decides nothing about what is logged.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

_LONGEST = 1000  # characters of one field
# Control characters could move a terminal's cursor or forge lines; a message keeps its own newlines and tabs.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def configure(level: str = "info", stream: TextIO | None = None, process: str = "") -> None:
    """Send every logger, uvicorn's too, through one handler to `stream` (stderr). May be called again.

    `process` is said in every line, where several processes of one kind write to the same place.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter(process) if stream.isatty() else JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    _route_uvicorn()


def _route_uvicorn() -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # the service logs requests itself, with their stages


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's fields, and the exception if any."""

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        """The standard members win over fields of the same name."""
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
        """One line, or more where the message has them."""
        fields = "".join(f" {name}={json.dumps(value)}" for name, value in _fields(record).items())
        time = _time(record).astimezone().strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():<8} {record.name}{self._process}: {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line.translate(_CONTROLS)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in getattr(record, "fields", {}).items()}


def _plain(value: object) -> Any:
    """What JSON can say: no bytes, no NaN, no long texts."""
    if isinstance(value, str):
        return _clipped(value)
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{memoryview(value).nbytes} bytes>"
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _clipped(str(value))


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
