"""`--config`: settings from a TOML file, their precedence, and the messages for mistakes in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cli import config
from service.cli.main import main
from service.errors import SettingsError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside; those that are set end with the test."""
    monkeypatch.setattr(os, "environ", {name: text for name, text in os.environ.items() if not name.startswith("VIM_")})


def written(folder: Path, text: str) -> Path:
    """A file of settings."""
    path = folder / "vim.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def refusal(folder: Path, text: str) -> str:
    """The message of the error for this file, without the name of its folder."""
    with pytest.raises(SettingsError) as caught:
        config.load(written(folder, text))
    return str(caught.value).replace(f"{folder}/", "")


def test_values_have_the_types_of_toml(tmp_path: Path) -> None:
    """Numbers, switches, texts and lists; an empty text is unset, as in the environment."""
    text = 'port = 8080\noffline = true\ndtype = "float32"\ncors_origins = ["https://a", "https://b"]\nlabels = ""\n'
    settings = config.load(written(tmp_path, text))

    assert (8080, True, "float32", "") == (settings.port, settings.offline, settings.dtype, settings.labels)
    assert "https://a,https://b" == settings.cors_origins


def test_option_before_environment_before_file_before_default(tmp_path: Path) -> None:
    """Each source is used for what those before it do not say; child processes find all of it."""
    os.environ.update({"VIM_MAX_BATCH": "2", "VIM_MAX_IMAGES": "2", "VIM_QUEUE_IMAGES": " "})
    path = written(tmp_path, "max_batch = 3\nmax_images = 3\nqueue_images = 30\n")

    settings = config.load(path, {"VIM_MAX_BATCH": "1"})

    assert (1, 2, 30, 16) == (settings.max_batch, settings.max_images, settings.queue_images, settings.fetch_max_urls)
    assert ["1", "2", "30"] == [os.environ[f"VIM_{name}"] for name in ("MAX_BATCH", "MAX_IMAGES", "QUEUE_IMAGES")]


def test_a_variable_of_kubernetes_does_not_replace_the_file(tmp_path: Path) -> None:
    """What Kubernetes sets for a service named vim is no setting."""
    os.environ["VIM_PORT"] = "tcp://10.0.0.1:80"

    assert 8080 == config.load(written(tmp_path, "port = 8080")).port


def test_relative_paths_mean_the_files_folder(tmp_path: Path) -> None:
    """Paths always, a model and labels where something of this name is there; names stay names."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "names.txt").touch()
    text = 'model = "weights"\nlabels = "names.txt"\ntls_cert = "c.pem"\ntls_key = "/k.pem"\ncache_dir = "~/cache"\n'
    settings = config.load(written(tmp_path, text))

    assert (str(tmp_path / "weights"), str(tmp_path / "names.txt")) == (settings.model, settings.labels)
    assert (tmp_path / "c.pem", Path("/k.pem")) == (settings.tls_cert, settings.tls_key)
    assert Path("~/cache").expanduser() == settings.cache_dir


def test_names_of_models_and_labels_stay_names(tmp_path: Path) -> None:
    """A name without a file beside the configuration is not made a path."""
    settings = config.load(written(tmp_path, 'model = "vim-tiny"\nlabels = "none"'))

    assert ("vim-tiny", "none") == (settings.model, settings.labels)


def test_relative_sources_of_several_models_mean_the_files_folder(tmp_path: Path) -> None:
    """Each source is a path where something of this name is beside the file; a repository always is."""
    (tmp_path / "weights").mkdir()
    listed = config.load(written(tmp_path, 'models = ["tiny=vim-tiny", "mine=weights"]'))
    os.environ.pop("VIM_MODELS")

    assert f"tiny=vim-tiny,mine={tmp_path / 'weights'}" == listed.models
    assert tmp_path / "all" == config.load(written(tmp_path, 'model_repository = "all"')).model_repository


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# ports\nprot = 1", "vim.toml, line 2: prot is not a setting; did you mean port?"),
        ("VIM_PORT = 1", "vim.toml, line 1: VIM_PORT is not a setting"),
        ("\n\nport = 70000", "vim.toml, line 3: port must be an integer between 0 and 65535, got '70000'"),
        ('"port" = "many"', "vim.toml, line 1: port must be an integer between 0 and 65535, got 'many'"),
        ("port = 8080.5", "vim.toml, line 1: port must be an integer between 0 and 65535, got '8080.5'"),
        ('api_keys = ["short"]', "vim.toml, line 1: api_keys must be keys, each of 16 to 200"),
        ("port = [1, 2]", "vim.toml, line 1: port must be a text, a number, true, false or a list of texts"),
        ("[model]\nname = 1", "vim.toml, line 1: model must be a text, a number, true, false or a list of texts"),
        ("port = 1\nport = 2", "vim.toml: Cannot overwrite a value"),
        ("port =", "vim.toml: Invalid value (at "),
    ],
)
def test_a_mistake_names_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    """A mistake is one line with the file, the line, the key and what is allowed or the nearest name."""
    said = refusal(tmp_path, text)

    assert said.startswith(message)
    assert "\n" not in said


def test_every_mistake_has_its_line(tmp_path: Path) -> None:
    """All keys that are no settings are reported together."""
    assert 2 == len(refusal(tmp_path, "prot = 1\nmodle = 2\nport = 1").splitlines())


def test_a_mistake_of_the_environment_is_the_variables(tmp_path: Path) -> None:
    """The file is not named for a value that is from elsewhere."""
    os.environ["VIM_PORT"] = "many"

    assert refusal(tmp_path, "port = 8080").startswith("VIM_PORT must be an integer")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file, and one that is no text."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, reason in (("absent", "cannot be read: No such file"), ("bytes", "is not a text in UTF-8")):
        with pytest.raises(SettingsError, match=f"--config: .*{name} {reason}"):
            config.load(tmp_path / name)


@pytest.mark.parametrize("name", ["api_keys", "admin_keys"])
def test_keys_that_others_can_read_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Keys may be in the file; the hint is given only while other users can read it."""
    path = written(tmp_path, f'{name} = ["{"k" * 20}", "{"l" * 20}"]')
    assert 2 == len(getattr(config.load(path), name))
    assert "" == capsys.readouterr().err

    path.chmod(0o644)
    config.load(path)
    assert f"chmod 600 {path}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve"], ["classify", "x.jpg"], ["embed", "x.jpg"], ["info"], ["tune"]])
def test_every_command_reads_the_file(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the file is an error of each of them, before anything is loaded."""
    path = written(tmp_path, "prot = 1")

    assert 2 == main([*command, "--config", str(path)])
    assert f"{path}, line 1: prot is not a setting; did you mean port?\n" == capsys.readouterr().err
