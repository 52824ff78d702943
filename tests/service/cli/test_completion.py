"""Completion for shells, with and without the package that makes it."""

from __future__ import annotations

import sys

import pytest

from service.cli.main import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_completion_knows_commands_options_and_values(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is of the installed command, whatever the program was started as."""
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    shown = capsys.readouterr().out

    assert "vim-server" in shown
    assert [] == [word for word in ("serve", "classify", "http-workers", "config", "bfloat16") if word not in shown]


def test_without_shtab_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and status 1."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match="1"):
        main(["--print-completion", "bash"])

    said = capsys.readouterr().err
    assert "pip install 'vim-server[completion]'" in said
    assert 1 == said.count("\n")
