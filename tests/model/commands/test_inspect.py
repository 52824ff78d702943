"""`python -m model inspect` says what a file contains, or what is wrong with it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.__main__ import main
from model.loading.load import load
from tests.model.loading.checkpoints import TINY, state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A training checkpoint with two sets of weights."""
    path = tmp_path / "train.pth"
    args = argparse.Namespace(model="vim_with_midclstok_div2", input_size=224)
    torch.save({"model": state(), "model_ema": state(seed=1), "epoch": 3, "args": args}, path)
    return path


def test_a_file_is_described(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report has format, keys, configuration with every assumption, parameters, fingerprint and labels."""
    assert main(["inspect", str(checkpoint)]) == 0

    out, vim = capsys.readouterr().out, load(checkpoint)
    assert "format       torch, " in out
    assert "weights      model (the file's keys: model, model_ema, epoch, args)" in out
    assert "sets         model, model_ema (--weights)\n" in out
    assert f"fingerprint  {vim.fingerprint}" in out
    assert f"parameters   {sum(p.numel() for p in vim.parameters()):,} in {len(vim.state_dict())} tensors" in out
    assert "config       inferred from the tensors" in out
    assert "labels       5 (none): class_0, class_1, class_2, …" in out
    for assumption in vim.assumptions:
        assert f"  {assumption}\n" in out + "\n"


def test_json_holds_the_same(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the same report; `--weights` and `--image-size` mean the same as for `load`."""
    assert main(["inspect", str(checkpoint), "--weights", "model_ema", "--image-size", "40", "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["weights"] == "model_ema"
    assert report["fingerprint"] == load(checkpoint, weights="model_ema", image_size=40).fingerprint
    assert report["config"] == TINY.replace(image_size=(40, 40)).to_dict()
    assert report["assumptions"]
    assert ["model", "model_ema"] == report["sets_of_weights"]
    assert report["bytes"] == checkpoint.stat().st_size


def test_a_headless_model_has_no_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model without a head has zero labels."""
    torch.save(state(num_classes=0), tmp_path / "a.pth")

    assert main(["inspect", str(tmp_path / "a.pth")]) == 0

    assert "labels       0 (none)\n" in capsys.readouterr().out


def test_a_bad_file_is_one_message_and_status_1(tmp_path: Path) -> None:
    """A file that is not a checkpoint gives one message, nothing on stdout, and no traceback."""
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    command = [sys.executable, "-m", "model", "inspect", str(tmp_path / "page.pth")]

    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{tmp_path / 'page.pth'} is an HTML or XML page")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("size", ["x", "big", "32xx"])
def test_a_bad_size_is_a_usage_error(checkpoint: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid --image-size ends with status 2, as any wrong option."""
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(checkpoint), "--image-size", size])

    assert "--image-size" in capsys.readouterr().err
