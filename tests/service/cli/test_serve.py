"""`serve`: its options, and what it refuses before the server is imported and the model loaded."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from service.cli import serve
from service.cli.main import main
from service.settings import Settings, variable


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside; those that the command sets end with the test."""
    monkeypatch.setattr(os, "environ", {name: text for name, text in os.environ.items() if not name.startswith("VIM_")})
    monkeypatch.setattr("service.log.configure", lambda _: None)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that a server is started with; none is."""
    found: list[Settings] = []

    def started(settings: Settings, *_: Any) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr("service.server.server.serve", started)
    return found


def test_the_main_settings_are_options(served: list[Settings]) -> None:
    """An option is its variable, and takes precedence; child processes inherit it."""
    os.environ["VIM_MAX_BATCH"] = "3"

    assert 0 == main(["serve", "--port", "0", "--host=127.0.0.1", "--max-batch", "5", "--log-level", "ERROR"])

    assert (0, 5, "error") == (served[0].port, served[0].max_batch, served[0].log_level)
    assert "5" == os.environ["VIM_MAX_BATCH"]


def test_a_wrong_value_is_the_settings_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the setting."""
    assert 2 == main(["serve", "--port", "many"])
    assert "VIM_PORT must be an integer between 0 and 65535, got 'many'\n" == capsys.readouterr().err


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """As an option, or as a variable."""
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])

    shown = capsys.readouterr().out
    assert [] == [name for name in Settings.model_fields if variable(name) not in shown]
    assert "--api-keys" not in shown


def test_a_port_that_is_taken_is_one_line_that_names_the_setting(
    served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    """A port that is taken is reported before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert 1 == main(["serve", "--port", str(port)])

    said = f"cannot listen on 127.0.0.1 port {port}: address already in use; set VIM_PORT (--port) or VIM_HOST"
    assert capsys.readouterr().err.startswith(said)
    assert [] == served


def test_a_wrong_model_is_one_line_without_the_server_being_imported() -> None:
    """The last and only line is the reason; neither torch nor uvicorn is imported for it."""
    code = (
        "import sys; from service.cli.main import main; status = main(['serve', '--model', 'vim-tinny']);"
        "print(status, [name for name in ('torch', 'uvicorn', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )

    assert "1 []\n" == done.stdout
    assert done.stderr.startswith("vim-tinny does not exist (did you mean 'vim-tiny'?)")
    assert 1 == done.stderr.count("\n")


def test_unknown_arguments_are_named() -> None:
    """Unknown arguments are named as they were given."""
    assert "unrecognized arguments: extra --what" == serve.unknown(["extra", "--what"])
