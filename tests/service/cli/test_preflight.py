"""A start that fails: status and one line with the reason, before torch or the server are imported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli import preflight
from service.cli.backend import CommandError

CODE = """
import sys
from service.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:
    status = error.code
print(status, [name for name in ("torch", "numba", "uvicorn", "fastapi") if name in sys.modules])
"""
CASES = [
    (["--model", "vim-tinny"], 1, "vim-tinny does not exist (did you mean 'vim-tiny'?)"),
    (["--model", "EMPTY"], 1, "EMPTY holds no weights"),
    (["VIM_MODELS=a=demo,b=vim-tinny"], 1, "model b: vim-tinny does not exist (did you mean 'vim-tiny'?)"),
    (["VIM_MODEL_REPOSITORY=EMPTY/no"], 1, "VIM_MODEL_REPOSITORY: EMPTY/no cannot be read: No such file"),
    (["VIM_MODEL_REPOSITORY=@FILE"], 1, "VIM_MODEL_REPOSITORY: @FILE cannot be read: Not a directory"),
    (["VIM_MODEL_REPOSITORY=EMPTY"], 1, "VIM_MODEL_REPOSITORY: EMPTY has no model: it needs a folder for each"),
    (["VIM_MODEL_REPOSITORY=TWO"], 1, "model second: TWO/second/2 holds no weights"),
    (["--model", "demo", "VIM_MODELS=a=demo"], 2, "VIM_MODEL and VIM_MODELS each say what to serve: set only one"),
    (["VIM_ADMIN_KEYS_FILE=EMPTY/keys"], 2, "VIM_ADMIN_KEYS_FILE: EMPTY/keys cannot be read: No such file"),
    (["--labels", "EMPTY/names.txt"], 1, "labels 'EMPTY/names.txt' is neither"),
    (["--port", "TAKEN"], 1, "cannot listen on 127.0.0.1 port TAKEN: address already in use; set VIM_PORT (--port)"),
    (["--host", "no.such.host.invalid"], 1, "cannot listen on no.such.host.invalid: "),
    (["--port", "many"], 2, "VIM_PORT must be an integer between 0 and 65535, got 'many'"),
    (["--prot", "1"], 2, "python -m service: error: unrecognized arguments: --prot 1; did you mean --port?"),
    (["--config", "EMPTY/vim.toml"], 2, "--config: EMPTY/vim.toml cannot be read: No such file"),
    (["VIM_PROT=1"], 2, "VIM_PROT is not a setting; did you mean VIM_PORT?"),
    (["VIM_METRICS_PORT=TAKEN"], 1, "cannot listen on 127.0.0.1 port TAKEN: address already in use; set VIM_METRICS"),
    (["VIM_API_KEYS_FILE=EMPTY/keys"], 2, "VIM_API_KEYS_FILE: EMPTY/keys cannot be read: No such file"),
    (["VIM_TLS_CERT=@FILE", "VIM_TLS_KEY=EMPTY/key"], 2, "VIM_TLS_KEY: EMPTY/key cannot be read: No such file"),
    (["VIM_TLS_CERT=EMPTY/c", "VIM_TLS_KEY=@FILE"], 2, "VIM_TLS_CERT: EMPTY/c cannot be read: No such file"),
    (["VIM_TLS_CERT=@FILE", "VIM_TLS_KEY=@FILE"], 2, "VIM_TLS_CERT and VIM_TLS_KEY must be a certificate"),
]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize(("given", "status", "reason"), CASES, ids=lambda value: str(value)[:40])
def test_the_last_line_is_the_reason(given: list[str], status: int, reason: str, taken: int, tmp_path: Path) -> None:
    """Options and variables that cannot be served; neither torch nor the server is imported to know it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no certificate")
    for file in ("first/1/model.safetensors", "second/1/model.safetensors", "second/2/notes.txt"):
        (tmp_path / "two" / file).parent.mkdir(parents=True)
        (tmp_path / "two" / file).touch()
    words = {
        "EMPTY": str(tmp_path / "empty"),
        "TWO": str(tmp_path / "two"),
        "@FILE": str(tmp_path / "file"),
        "TAKEN": str(taken),
    }

    def filled(text: str) -> str:
        for word, value in words.items():
            text = text.replace(word, value)
        return text

    variables = dict(filled(one).split("=", 1) for one in given if one.startswith("VIM_"))
    options = [filled(one) for one in given if not one.startswith("VIM_")]
    clean = {name: text for name, text in os.environ.items() if not name.startswith("VIM_")}
    command = [sys.executable, "-c", CODE, "serve", *([] if "--port" in options else ["--port", "0"]), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | variables)

    assert f"{status} []\n" == done.stdout
    assert done.stderr.splitlines()[-1].startswith(filled(reason))
    assert "Traceback" not in done.stderr


def test_a_gpu_without_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The driver's library is looked for; a driver of AMD is one too."""
    monkeypatch.setattr(preflight, "_DRIVER", "libnowhere.so.1")
    monkeypatch.setattr(preflight, "_AMD", tmp_path / "kfd")
    with pytest.raises(CommandError, match="VIM_DEVICE=cuda:1: this machine has no NVIDIA driver"):
        preflight.check_driver("cuda:1")

    (tmp_path / "kfd").touch()
    preflight.check_driver("cuda:1")
