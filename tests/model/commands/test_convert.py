"""`python -m model convert`: any source as a directory that computes the same."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model import Labels, Preprocess, VimConfig, load
from model.__main__ import main
from model.commands.convert import convert
from model.loading.load import read
from tests.model.loading.checkpoints import TINY, rope_state, state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A training checkpoint with two sets of weights."""
    path = tmp_path / "train.pth"
    args = argparse.Namespace(model="vim_with_midclstok_div2", input_size=32)
    torch.save({"model": state(), "optimizer": {}, "model_ema": state(seed=1), "args": args}, path)
    return path


@pytest.mark.parametrize("options", [[], ["--weights", "model_ema"], ["--image-size", "64"]])
def test_the_fingerprint_stays(checkpoint: Path, tmp_path: Path, options: list[str]) -> None:
    """The fingerprint stays for either set of weights and when resampled; assumptions become part of config.json."""
    assert main(["convert", str(checkpoint), str(tmp_path / "new" / "model"), *options]) == 0

    names = {name.strip("-").replace("-", "_"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    given: dict[str, Any] = {name: int(value) if value.isdigit() else value for name, value in names.items()}
    source, written = load(checkpoint, device="cpu", **given), load(tmp_path / "new" / "model", device="cpu")
    assert written.fingerprint == source.fingerprint
    assert written.config == source.config
    assert (source.assumptions, written.assumptions) != ((), ()) == ((), written.assumptions)
    images = torch.linspace(-1, 1, 3 * source.preprocess.size**2).reshape(1, 3, *source.config.image_size)
    torch.testing.assert_close(written(images), source(images), rtol=0, atol=0)


def test_what_is_written(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights and configuration are written, labels if classes have names, and a recipe that is not the default."""
    target = tmp_path / "out"
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\neel\n")

    assert main(["convert", str(checkpoint), str(target)]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert main(["convert", str(checkpoint), str(target), "--labels", str(tmp_path / "names.txt"), "--force"]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "labels.json", "model.safetensors"]

    assert Labels.read(target / "labels.json")[1] == "bee"
    out = capsys.readouterr().out
    assert f"{target / 'model.safetensors'}  0.0 MB" in out
    assert f"fingerprint {read(checkpoint).fingerprint}, the same as the source's" in out
    assert "assumed, and written to config.json: flip = false" in out


def test_an_unusual_recipe_goes_along(tmp_path: Path) -> None:
    """A recipe that is not the default is written, and a directory converts to itself in every mode."""
    source = tmp_path / "source"
    convert(read_tiny(tmp_path), source)
    (source / "preprocess.json").write_text(json.dumps({"crop_ratio": 1.0}))

    for mode in ("reference", "friendly"):
        contents = read(source, preprocess=mode)
        convert(contents, tmp_path / mode)
        assert read(tmp_path / mode, preprocess=mode).fingerprint == contents.fingerprint
        assert read(tmp_path / mode).preprocess == Preprocess(size=32, crop_ratio=1.0)


@pytest.mark.parametrize(("crop_ratio", "written"), [(None, False), (0.875, True)])
def test_a_family_keeps_its_own_recipe(tmp_path: Path, crop_ratio: float | None, written: bool) -> None:
    """Mamba-Reg evaluates with crop ratio 1.0: only another one needs a file."""
    spread: dict[str, Any] = {"family": "mamba-reg", "class_token": "spread", "spread_tokens": 3, "neck_reduction": 2}
    source = tmp_path / "source"
    source.mkdir()
    torch.save(state(**spread), source / "weights.pth")
    if crop_ratio:
        (source / "preprocess.json").write_text(json.dumps({"crop_ratio": crop_ratio}))
    contents = read(source)

    convert(contents, tmp_path / "out")

    assert TINY.replace(**spread) == VimConfig.read(tmp_path / "out" / "config.json")
    assert Preprocess(size=32, crop_ratio=crop_ratio or 1.0) == read(tmp_path / "out").preprocess
    assert written == (tmp_path / "out" / "preprocess.json").exists()


def read_tiny(tmp_path: Path) -> Any:
    """Return the tiny model, read from a file."""
    torch.save(state(), tmp_path / "tiny.pth")
    return read(tmp_path / "tiny.pth")


def test_nothing_is_overwritten_unasked(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Existing files are not replaced without `--force`, which also removes outdated ones."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "labels.json").write_text("mine")
    (target / "notes.txt").write_text("mine")

    assert main(["convert", str(checkpoint), str(target)]) == 1
    assert "already holds labels.json: nothing was written; --force replaces them" in capsys.readouterr().err
    assert main(["convert", "/nowhere/at/all.pth", str(target)]) == 1
    assert "already holds labels.json" in capsys.readouterr().err  # before the source is looked at
    assert sorted(path.name for path in target.iterdir()) == ["labels.json", "notes.txt"]
    assert main(["convert", str(checkpoint), str(target), "--force"]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    assert main(["convert", str(checkpoint), str(target / "notes.txt")]) == 1
    assert "is a file; name a directory" in capsys.readouterr().err


def test_in_place(tmp_path: Path) -> None:
    """A directory may be converted onto itself for another image size."""
    convert(read_tiny(tmp_path), tmp_path / "a")
    larger = read(tmp_path / "a", image_size=64)

    convert(larger, tmp_path / "a", force=True)

    assert read(tmp_path / "a").fingerprint == larger.fingerprint


def test_rope_tables_are_left_out(tmp_path: Path) -> None:
    """RoPE tables are not written, because the configuration determines them."""
    torch.save(rope_state(), tmp_path / "rope.pth")
    contents = read(tmp_path / "rope.pth")

    convert(contents, tmp_path / "out")

    assert TINY.replace(rope=True, class_token="first", rope_residual=True, divide_out=False) == contents.config
    assert set(read(tmp_path / "out").checkpoint.tensors) == set(contents.checkpoint.tensors) - {
        "rope.freqs_cos",
        "rope.freqs_sin",
    }


def test_an_interrupted_conversion_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while weights are written ends with status 130 and leaves no partial file under a final name."""

    def interrupted(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    read_tiny(tmp_path)
    monkeypatch.setattr("model.commands.convert.save_file", interrupted)

    assert main(["convert", str(tmp_path / "tiny.pth"), str(tmp_path / "out")]) == 130
    assert list((tmp_path / "out").iterdir()) == []
