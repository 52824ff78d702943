"""Log lines are JSON for machines and text for people, and never contain payloads."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service import log

UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access")


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Restore the logging of the process after each test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loggers = [logging.getLogger(name) for name in UVICORN]
    states = [(logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for logger, (own, propagate) in zip(loggers, states, strict=True):
        logger.handlers[:], logger.propagate = own, propagate


def logged(message: str = "hello", /, *args: object, level: int = logging.INFO, **fields: object) -> dict[str, Any]:
    """The JSON object of a record with these fields."""
    stream = io.StringIO()
    log.configure("debug", stream)
    logging.getLogger("service.test").log(level, message, *args, extra={"fields": fields})
    (line,) = stream.getvalue().splitlines()
    parsed: dict[str, Any] = json.loads(line, parse_constant=pytest.fail)
    return parsed


def written(message: str, /, **fields: object) -> str:
    """The text that a terminal gets for a record."""
    stream = Terminal()
    log.configure("info", stream)
    logging.getLogger("service.test").warning(message, extra={"fields": fields})
    return stream.getvalue()


def test_a_json_line_has_time_level_logger_message_and_fields() -> None:
    """A JSON line begins with time, level, logger and message, and then has the fields."""
    line = logged("served %d", 3, images=3, took_ms=1.5, name=None, warm=True)

    assert list(line) == ["time", "level", "logger", "message", "images", "took_ms", "name", "warm"]
    assert line["level"] == "info"
    assert line["logger"] == "service.test"
    assert line["message"] == "served 3"
    assert (line["images"], line["took_ms"], line["name"], line["warm"]) == (3, 1.5, None, True)


def test_the_time_is_iso_8601_in_utc() -> None:
    """The time of a record is ISO 8601 in UTC, whatever the time zone of the machine."""
    time = logged()["time"]

    assert time.endswith("Z")
    assert datetime.fromisoformat(time).utcoffset() == timedelta(0)


def test_a_record_without_fields_is_fine() -> None:
    """A record without fields, as other libraries make them, is written."""
    stream = io.StringIO()
    log.configure("info", stream)
    logging.getLogger("elsewhere").warning("plain")

    assert json.loads(stream.getvalue())["message"] == "plain"


def test_a_field_cannot_pose_as_a_standard_member() -> None:
    """A field named `level` does not replace the level of the record."""
    line = logged("real", message="forged", level_="x", logger="forged")

    assert (line["message"], line["logger"]) == ("real", "service.test")


@pytest.mark.parametrize("payload", [b"secret", bytearray(b"secret"), memoryview(b"secret"), [b"secret"]])
def test_payloads_become_their_length(payload: object) -> None:
    """Bytes are logged as their length, so no image and no key is in the log."""
    line = json.dumps(logged(body=payload))

    assert "secret" not in line
    assert "<6 bytes>" in line


def test_any_value_makes_valid_json() -> None:
    """Any value gives valid JSON: NaN and unknown objects become text, and long texts are cut."""
    line = logged(nan=float("nan"), inf=[float("inf")], path=Path("a"), deep={1: {"x": b""}}, long="x" * 5000)

    assert (line["nan"], line["inf"], line["path"]) == ("nan", ["inf"], "a")
    assert line["deep"] == {"1": {"x": "<0 bytes>"}}
    assert len(line["long"]) == 1001


def test_a_newline_cannot_forge_a_json_line() -> None:
    """A message with a newline is still one JSON line."""
    assert logged('a\n{"level": "error"}')["message"] == 'a\n{"level": "error"}'


def test_an_exception_is_a_field() -> None:
    """The traceback of an exception is a member of the JSON line, not lines of its own."""
    stream = io.StringIO()
    log.configure("info", stream)
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("service.test").exception("failed")
    line = json.loads(stream.getvalue())

    assert line["message"] == "failed"
    assert line["exception"].startswith("Traceback")
    assert "KeyError: 'lost'" in line["exception"]


def test_a_terminal_gets_text() -> None:
    """A terminal gets time, level, logger, message and fields as text."""
    text = written("started", port=8000, model="demo")

    assert text.endswith(' warning  service.test: started port=8000 model="demo"\n')


def test_a_terminal_is_not_controlled_by_what_is_logged() -> None:
    """Escape sequences and carriage returns are escaped; newlines of a message are kept."""
    text = written("one\ntwo\x1b[2J\r", name="\x1b]0;owned\x07\n")

    assert "one\ntwo\\x1b[2J\\x0d" in text
    assert not {"\x1b", "\r", "\x07"} & set(text)
    assert text.count("\n") == 2


def test_a_terminal_shows_the_traceback_below() -> None:
    """A terminal shows the traceback of an exception below its line."""
    stream = Terminal()
    log.configure("info", stream)
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("service.test").exception("failed")

    assert "service.test: failed\nTraceback" in stream.getvalue()


def test_the_level_holds() -> None:
    """Records below the configured level are not written."""
    stream = io.StringIO()
    log.configure("warning", stream)
    logging.getLogger("service.test").info("quiet")

    assert stream.getvalue() == ""


def test_configuring_again_replaces_the_handler() -> None:
    """After a second call of configure each record is written once."""
    first, second = io.StringIO(), io.StringIO()
    log.configure("info", first)
    log.configure("info", second)
    logging.getLogger("service.test").info("once")

    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


def test_uvicorn_logs_through_the_same_handler_but_its_access_log_is_off() -> None:
    """uvicorn's records have the same format, and its access log is off because the service logs requests."""
    own = logging.StreamHandler(io.StringIO())
    logging.getLogger("uvicorn").addHandler(own)
    stream = io.StringIO()
    log.configure("info", stream)
    logging.getLogger("uvicorn.error").info("Started")
    logging.getLogger("uvicorn.access").info("GET /")

    assert own not in logging.getLogger("uvicorn").handlers
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["Started"]


def test_headers_of_fetches_are_not_logged() -> None:
    """At level debug httpcore2 would log headers, which may have signed URLs."""
    log.configure("debug", io.StringIO())

    assert not logging.getLogger("httpcore2.http11").isEnabledFor(logging.DEBUG)
    assert logging.getLogger("vim.fetch").isEnabledFor(logging.DEBUG)


def test_warnings_are_logged() -> None:
    """Python's warnings are JSON lines like all records."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.configure("info", stream)
        warnings.warn("careful", stacklevel=1)
        logging.captureWarnings(False)

    line = json.loads(stream.getvalue())
    assert line["logger"] == "py.warnings"
    assert "careful" in line["message"]


def test_the_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Log lines go to stderr by default."""
    log.configure()
    logging.getLogger("service.test").info("here")
    captured = capsys.readouterr()

    assert captured.out == ""
    assert json.loads(captured.err)["message"] == "here"


def test_lines_tell_the_process_where_there_are_several() -> None:
    """Both formats name the process if a name is given, and nothing otherwise."""
    record = logging.LogRecord("vim.x", logging.INFO, "", 0, "said", (), None)

    assert "http-1" == json.loads(log.JsonFormatter("http-1").format(record))["process"]
    assert "process" not in json.loads(log.JsonFormatter().format(record))
    assert "vim.x [http-1]: said" in log.TextFormatter("http-1").format(record)
