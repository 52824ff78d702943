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


def test_the_name_of_a_model_is_not_completed_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """`serve --model` may be a file; for the other commands it is a name."""
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", "bash"])
    shown = capsys.readouterr().out

    for command in ("classify", "embed", "info", "tune"):
        assert f"_{command}_option_strings=" in shown
        assert f"_{command}___model_COMPGEN" not in shown
    assert "_serve___model_COMPGEN=_shtab_compgen_files" in shown


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
