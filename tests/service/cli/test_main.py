"""The command line without a server: its answers, its arguments and its exit status."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import model
from model.runtime.runner import Runner
from service.cli.backend import Model
from service.cli.local import settings_for
from service.cli.main import main
from service.cli.run import summary
from service.cli.terminal import Progress
from service.images.decode import DecodeLimits, Decoder
from service.settings import Settings
from tests.tiny import write_tiny_model

TINY = Model("tiny", "0123456789ab")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Iterator[None]:
    """Set the environment of these tests, and restore logging afterwards."""
    for name in [name for name in os.environ if name.startswith("VIM_")]:
        monkeypatch.delenv(name)
    for name, value in {"VIM_MODEL": str(tiny_model), "VIM_DEVICE": "cpu", "VIM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    root, engine = logging.getLogger(), logging.getLogger("vim.pool")
    before = root.handlers[:], root.level, engine.filters[:]
    yield
    root.handlers[:], root.level, engine.filters[:] = before[0], before[1], before[2]
    logging.captureWarnings(False)


def expected(directory: Path, *files: Path) -> dict[str, np.ndarray]:
    """The rows that the model gives for these files."""
    vim = model.load(directory, device="cpu", preprocess="friendly")
    size = vim.config.image_size[0]
    pixels = np.zeros((len(files), size, size, 3), np.uint8)
    decoder = Decoder(vim.preprocess, DecodeLimits(10**8))
    for file, out in zip(files, pixels, strict=True):
        decoder.decode(file.read_bytes(), out)
    rows = Runner(vim).run(pixels, scores=True, cls=True, mean=True)
    assert rows.scores is not None
    assert rows.cls is not None
    assert rows.mean is not None
    return {"scores": rows.scores, "cls": rows.cls, "mean": rows.mean}


def test_classify_answers_a_folder_as_the_model_does(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file has one JSON line in the order of paths, also a failed one, and then the status is 1."""
    assert 1 == main(["classify", str(folder), "--json", "--top-k", "7"])

    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    scores = expected(tiny_model, folder / "b" / "y.png", folder / "z.JPG")["scores"]
    assert [str(folder / name) for name in ("a.jpeg", "b/y.png", "z.JPG")] == [line["file"] for line in lines]
    assert "unsupported_image" == lines[0]["error"]["code"]
    for line, row in zip(lines[1:], scores, strict=True):
        best = np.argsort(-row, kind="stable")
        assert list(best) == [one["index"] for one in line["predictions"]]
        np.testing.assert_allclose([one["score"] for one in line["predictions"]], row[best], rtol=0, atol=1e-5)
        assert line["predictions"][0]["label"] == f"thing {best[0]}"
    assert model.load(tiny_model, device="cpu", preprocess="friendly").fingerprint == lines[1]["model"]["fingerprint"]
    assert "a.jpeg: the JPEG image is" in err
    assert "2 of 3 images" in err


def test_embed_writes_rows_and_names(
    folder: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """embed --no-normalize writes the model's own embeddings (float32, N x D), and the report names the model."""
    files = [folder / "z.JPG", folder / "b" / "y.png"]
    arguments = ["embed", *map(str, files), "--pooling", "mean", "--no-normalize", "--out", str(tmp_path / "e.npy")]

    assert 0 == main([*arguments, "--batch", "1"])

    rows = np.load(tmp_path / "e.npy")
    assert np.float32 == rows.dtype
    np.testing.assert_allclose(rows, expected(tiny_model, *files)["mean"], rtol=0, atol=1e-5)
    assert [str(file) for file in files] == (tmp_path / "e.names.txt").read_text().splitlines()
    out = capsys.readouterr().out
    assert f"{tmp_path / 'e.npy'}: 2 x 32 float32, mean pooling, not normalized" in out
    assert "model       tiny (fingerprint " in out


def test_the_crop_is_an_option(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """embed --crop gives other rows, and the report says which crop they are of."""
    file, rows = folder / "z.JPG", {}
    for crop in ("center", "full"):
        assert 0 == main(["embed", str(file), "--crop", crop, "--json", "--out", str(tmp_path / f"{crop}.npy")])
        assert crop == json.loads(capsys.readouterr().out)["crop"]
        rows[crop] = np.load(tmp_path / f"{crop}.npy")

    assert not np.allclose(rows["center"], rows["full"])


def test_a_model_that_cannot_be_loaded_is_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that cannot be loaded gives one message on stderr and status 1, without a traceback or log lines."""
    monkeypatch.setenv("VIM_MODEL", "/nowhere/at/all.pth")

    assert 1 == main(["classify", str(folder)])

    out, err = capsys.readouterr()
    assert "" == out
    assert err.startswith("/nowhere/at/all.pth does not exist")
    assert 1 == err.count("\n")


def test_info_says_what_the_model_is(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command info prints what /info answers, with the limits that apply."""
    assert 0 == main(["info", "--json"])

    info = json.loads(capsys.readouterr().out)
    assert ("tiny", 7, 32) == tuple(info["model"][name] for name in ("name", "classes", "embedding_dim"))
    assert {"model", "preprocess", "device", "dtype", "scan", "versions", "limits"} <= info.keys()


def test_of_several_models_the_default_one_answers(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command uses the first model of a list, under its name there."""
    monkeypatch.delenv("VIM_MODEL")
    monkeypatch.setenv("VIM_MODELS", f"mine={tiny_model},other=demo")

    assert 0 == main(["info", "--json"])
    assert "mine" == json.loads(capsys.readouterr().out)["model"]["name"]


def test_model_selects_one_of_several(
    folder: Path,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--model` is a name of VIM_MODELS or of the repository; the answers are by that model."""
    other = write_tiny_model(tmp_path / "models" / "other", seed=1)
    monkeypatch.delenv("VIM_MODEL")
    monkeypatch.setenv("VIM_MODELS", f"tiny={tiny_model},mine={other}")
    assert 0 == main(["classify", str(folder / "z.JPG"), "--model", "mine", "--json"])
    found = json.loads(capsys.readouterr().out)
    scores = expected(other, folder / "z.JPG")["scores"][0]
    assert ("mine", int(np.argmax(scores))) == (found["model"]["name"], found["predictions"][0]["index"])

    monkeypatch.delenv("VIM_MODELS")
    monkeypatch.setenv("VIM_MODEL_REPOSITORY", str(tmp_path / "models"))
    assert 0 == main(["info", "--model", "other", "--json"])
    assert found["model"]["fingerprint"] == json.loads(capsys.readouterr().out)["model"]["fingerprint"]


@pytest.mark.parametrize("command", [["classify", "x.jpg"], ["embed", "x.jpg"], ["info"], ["tune"]])
@pytest.mark.parametrize(("models", "known"), [("", "tiny"), ("a=demo,b=demo", "a, b")])
def test_an_unknown_model_is_one_line_with_the_known_names(
    command: list[str], models: str, known: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With VIM_MODEL alone the only name is that of answers; nothing is loaded for another."""
    if models:
        monkeypatch.delenv("VIM_MODEL")
        monkeypatch.setenv("VIM_MODELS", models)

    assert 1 == main([*command, "--model", "absent"])
    assert ("", f"--model: there is no model 'absent'; the settings have {known}\n") == capsys.readouterr()


def test_the_only_model_may_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    """With VIM_MODEL alone `--model` may be the name that answers have."""
    assert 0 == main(["info", "--model", "tiny", "--json"])
    assert "tiny" == json.loads(capsys.readouterr().out)["model"]["name"]


def test_the_command_itself_never_imports_torch() -> None:
    """The command never imports torch, which only the device process needs."""
    import subprocess

    code = "import service.cli.main, service.cli.local, service.cli.remote, sys; print('torch' in sys.modules)"
    assert b"False\n" == subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["classify"], "FILE"),
        (["classify", "a.jpg", "--top-k", "0"], "at least 1"),
        (["classify", "a.jpg", "--batch", "x"], "--batch"),
        (["classify", "a.jpg", "--url", "localhost:8000"], "is not like http://host:8000"),
        (["classify", "a.jpg", "--pooling", "mean"], "--pooling"),
        (["embed", "a.jpg", "--pooling", "max"], "--pooling"),
        (["embed", "a.jpg", "--out", "/nowhere/at/all.npy"], "there is no folder /nowhere/at"),
        (["embed", "a.jpg", "--out", "/"], "--out"),
        (["embed", "a.jpg", "--out", "holiday.txt"], "holiday.txt does not end in .npy"),
        (["serve", "--queue-images", "9"], "--queue-images is not an option here: set VIM_QUEUE_IMAGES"),
        (["classify", "a.jpg", "--device=cpu"], "(an option of serve only): set VIM_DEVICE in the environment"),
        (["classify", "a.jpg", "--model", ""], "must be the name of a model"),
        (["serve", "--prot", "9302"], "unrecognized arguments: --prot 9302"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage gives status 2 before a model is loaded."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)

    assert says in capsys.readouterr().err


def test_wrong_settings_are_status_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong settings give status 2 and the message of the server."""
    monkeypatch.setenv("VIM_MODLE", "demo")

    assert 2 == main(["info"])

    assert "VIM_MODLE is not a setting; did you mean VIM_MODEL?" in capsys.readouterr().err


def test_a_full_disk_is_one_message(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """When stdout cannot be written, the command prints one message without a traceback."""

    def no_space(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.cli.main.asyncio.run", lambda work: (work.close(), no_space()))

    assert 1 == main(["info"])
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["classify", "--json"], ["embed"]])
@pytest.mark.parametrize("given", ["notes.txt", "empty", "missing.jpg"])
def test_what_is_no_image_is_refused_before_the_model_is_loaded(
    command: list[str], given: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text, an empty folder and a missing file give their errors at once, and no rate."""
    monkeypatch.setattr("service.cli.local.local", None)
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()

    assert 1 == main([*command, given])

    out, err = capsys.readouterr()
    assert err.startswith(f"{given}: ")
    assert "images/s" not in err
    assert ("classify" not in command) or given == json.loads(out)["file"]


def test_the_summary_counts_what_was_answered() -> None:
    """Images that failed are not in the rate, and without an answer there is none."""
    now = 0.0
    progress = Progress(4, sys.stderr, lambda: now)
    for failed in (True, True, True, False):
        progress.step(failed=failed)
    now = 2.0
    assert "1 of 4 images by tiny (fingerprint 0123456789ab), 3 failed, 2.0 s (0.5 images/s)" == summary(progress, TINY)
    progress = Progress(1, sys.stderr, lambda: now)
    progress.step(failed=True)
    assert summary(progress, TINY).endswith("1 failed, 0.0 s")


@pytest.mark.parametrize(
    ("images", "batch", "max_batch", "queue"), [(3, None, 3, 256), (100, None, None, 256), (0, None, None, 256),
                                                (3, 500, 500, 1000)]
)  # fmt: skip
def test_batches_suit_the_number_of_images(images: int, batch: int | None, max_batch: int | None, queue: int) -> None:
    """With few images the batch is no larger than their number, and --batch enlarges the queue if needed."""
    settings = settings_for(Settings(), images, batch)

    assert (max_batch, queue) == (settings.max_batch, settings.queue_images)
