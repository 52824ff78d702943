"""`teach`: from a folder of classes to a head that a server uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.heads.head import Head
from service.cli.main import main
from tests.e2e.server import Server, serving
from tests.tiny import photo, write_tiny_model

ADMIN = "admin-key-of-the-test"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with custom heads and an administrator."""
    directory = tmp_path_factory.mktemp("teach")
    with serving(directory, model=model, heads_dir=directory / "heads", admin_keys=ADMIN) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, light and dark, of four pictures each, a hidden folder, and a file beside them."""
    for name, shift in (("light", 0), ("dark", 100)):
        (tmp_path / "kinds" / name).mkdir(parents=True)
        for seed in range(4):
            (tmp_path / "kinds" / name / f"{seed}.jpg").write_bytes(photo(shift + seed))
    (tmp_path / "kinds" / ".hidden").mkdir()
    (tmp_path / "kinds" / "notes.txt").write_text("no class")
    return tmp_path / "kinds"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder and the environment of a test."""
    monkeypatch.chdir(tmp_path)
    for name in ("VIM_CLIENT_KEY", "VIM_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_head_is_taught_written_and_sent(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a server and a key the head is written, and the server classifies with it."""
    monkeypatch.setenv("VIM_ADMIN_KEY", ADMIN)
    assert 0 == main(["teach", str(folder), "--name", "kinds", "--url", server.url, "--json"])
    report = json.loads(capsys.readouterr().out)
    head = Head.read(Path("kinds.safetensors").read_bytes())
    answer = httpx.post(f"{server.url}/v1/classify?head=kinds&reject=0.05", content=photo(1)).json()

    assert ("dark", "light") == head.labels
    assert head.domain is not None
    assert server.info()["model"]["fingerprint"] == head.model
    assert {"dark": 4, "light": 4} == head.recipe["pictures"]
    assert f"{server.url}/v1/heads/kinds" == report["head"]["sent_to"]
    assert {"kinds": head.fingerprint} == answer["heads"]
    assert {"predictions", "in_domain", "label", "index"} == answer["results"][0].keys()
    assert (8, 4) == (report["pictures"], report["folds"])


def test_without_a_key_the_head_is_only_written(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key of an administrator nothing is sent."""
    assert 0 == main(["teach", str(folder), "--name", "local", "--url", server.url, "--out", "there.safetensors"])
    text = capsys.readouterr().out

    assert "accuracy" in text
    assert "there.safetensors" in text
    assert "sent" not in text
    assert 404 == httpx.post(f"{server.url}/v1/classify?head=local", content=photo()).status_code


def test_a_refused_head_is_an_error_and_stays_on_disk(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the server refuses the key, the command fails with the server's reason; the file is there."""
    monkeypatch.setenv("VIM_ADMIN_KEY", "another-key-of-the-test")
    assert 1 == main(["teach", str(folder), "--name", "refused", "--url", server.url])

    assert "did not take the head: 401" in capsys.readouterr().err
    assert Path("refused.safetensors").exists()


def test_a_model_is_taught_without_a_server(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --url the command loads the model; a picture that cannot be read is named, and the others are used."""
    (folder / "dark" / "broken.jpg").write_bytes(photo()[:300])
    for name, value in (("VIM_MODEL", str(model)), ("VIM_DEVICE", "cpu"), ("VIM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    assert 1 == main(["teach", str(folder), "--name", "kinds"])
    output = capsys.readouterr()

    assert "broken.jpg" in output.err
    assert {"dark": 4, "light": 4} == Head.read(Path("kinds.safetensors").read_bytes()).recipe["pictures"]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({}, "at least two; it has 0"),
        ({"a": 3}, "at least two; it has 1"),
        ({"a": 3, "b": 1}, "the class 'b' has 1 readable pictures"),
        ({"a": 3, "b": 0}, "the class 'b' has 0 readable pictures"),
    ],
)
def test_too_few_pictures(
    server: Server, tmp_path: Path, made: dict[str, int], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without two classes of two pictures is an error that says what is missing."""
    folder = tmp_path / "few"
    for name, count in made.items():
        (folder / name).mkdir(parents=True)
        for seed in range(count):
            (folder / name / f"{seed}.jpg").write_bytes(photo(seed))
    folder.mkdir(exist_ok=True)
    assert 1 == main(["teach", str(folder), "--name", "few", "--url", server.url])

    assert reason in capsys.readouterr().err
    assert not Path("few.safetensors").exists()


def test_the_features_are_those_that_the_head_sees(server: Server, folder: Path) -> None:
    """The scores of the server are the softmax of the written head on the raw embedding."""
    assert 0 == main(["teach", str(folder), "--name", "same", "--url", server.url])
    data = Path("same.safetensors").read_bytes()
    headers = {"Authorization": f"Bearer {ADMIN}"}
    assert 200 == httpx.put(f"{server.url}/v1/heads/same", content=data, headers=headers).status_code
    head = Head.read(data)
    embedding = httpx.post(f"{server.url}/v1/embed?normalize=false", content=photo(3)).json()["results"][0]["embedding"]
    found: Any = httpx.post(f"{server.url}/v1/classify?head=same", content=photo(3)).json()["results"][0]["predictions"]
    exponentials = np.exp(head.weight @ np.array(embedding) + head.bias)

    wanted = dict(zip(head.labels, exponentials / exponentials.sum(), strict=True))
    assert pytest.approx(wanted, abs=1e-5) == {one["label"]: one["score"] for one in found}


def test_without_scikit_learn_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the extra is not installed, the command says so before it loads a model."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert 1 == main(["teach", str(folder), "--name", "none"])

    assert "pip install '.[teach]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "a/b", "a~b", "x" * 65])
def test_a_name_that_is_none(folder: Path, name: str) -> None:
    """A name that a head cannot have is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        main(["teach", str(folder), "--name", name])

    assert 2 == ended.value.code
