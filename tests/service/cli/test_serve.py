"""`serve`: its options, and what it refuses before the server is imported and the model loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from service.cli import serve
from service.cli.main import main
from service.settings import Settings, groups, variable


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


def test_a_file_is_used_for_what_neither_option_nor_variable_says(served: list[Settings], tmp_path: Path) -> None:
    """The file's settings reach the server, and child processes inherit them."""
    (tmp_path / "vim.toml").write_text("port = 1\nmax_batch = 3\nmax_images = 5\n")
    os.environ["VIM_MAX_BATCH"] = "4"

    assert 0 == main(["serve", "--config", str(tmp_path / "vim.toml"), "--port", "0"])

    assert (0, 4, 5) == (served[0].port, served[0].max_batch, served[0].max_images)
    assert "5" == os.environ["VIM_MAX_IMAGES"]


def test_keys_of_a_file_are_not_left_in_the_environment(served: list[Settings], tmp_path: Path) -> None:
    """As those of the variable, keys are not passed on to child processes."""
    (tmp_path / "vim.toml").write_text(f'api_keys = "{"k" * 20}"\nadmin_keys = "{"a" * 20}"')

    assert 0 == main(["serve", "--config", str(tmp_path / "vim.toml"), "--port", "0"])

    assert 1 == len(served[0].api_keys) == len(served[0].admin_keys)
    assert {"VIM_API_KEYS", "VIM_ADMIN_KEYS"}.isdisjoint(os.environ)


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """By group, each with its variable, its default and its meaning."""
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])

    shown = capsys.readouterr().out
    assert [] == [name for name in Settings.model_fields if variable(name) not in shown]
    assert [] == [group for group in groups() if f"\n{group}:\n" not in shown]
    assert "  --port, VIM_PORT (default 8000)\n      Port to listen on; 0 takes a free one.\n" in shown
    assert "  VIM_PAGE (default true)\n" in shown
    assert "--api-keys" not in shown


def test_unknown_arguments_are_named() -> None:
    """Unknown arguments are named as they were given."""
    assert "unrecognized arguments: extra --what" == serve.unknown(["extra", "--what"])
