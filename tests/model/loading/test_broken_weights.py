"""Files that people use in place of weights, through `load`: each works, or has a message that says what to do.

The details are in `test_checkpoint` (files), `test_load` (misfits) and `test_hub` (downloads).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model import load
from model.errors import WeightsError
from tests.model.loading.checkpoints import TINY, state

STATE = state()
PLAIN = {name: tensor for name, tensor in STATE.items() if "_b." not in name and not name.endswith(("A_b_log", "D_b"))}


class Payload:
    """Code that would make a directory when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def torch_file(make: Callable[[Path], Any]) -> Callable[[Path], object]:
    """Return the bytes that torch.save writes for an object."""
    return lambda path: torch.save(make(path), path)


def text(content: bytes) -> Callable[[Path], object]:
    """Return a function that writes a file of these bytes."""
    return lambda path: path.write_bytes(content)


def cut(path: Path) -> None:
    """Return a function that writes the first half of a valid file."""
    torch.save({"model": STATE}, path)
    os.truncate(path, path.stat().st_size // 2)


def cut_safetensors(path: Path) -> None:
    """Return a function that writes the first half of a valid safetensors file."""
    save_file(STATE, path)
    os.truncate(path, path.stat().st_size // 2)


def replaced(name: str, tensor: Tensor) -> Callable[[Path], dict[str, Tensor]]:
    """The tiny model with one tensor changed."""
    return lambda _: STATE | {name: tensor}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1562052893\n"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (cut, r"is cut short or damaged: its zip directory is missing; download it again"),
    "truncated safetensors": (cut_safetensors, r"is a safetensors file cut short or damaged .*; download it again"),
    "empty": (text(b""), r"is empty \(0 bytes\); download it again"),
    "html": (text(b"<!DOCTYPE html><html>Sign in"), r"is an HTML or XML page: the link led to a web page"),
    "lfs pointer": (text(POINTER), r"is a git-lfs pointer to a file of 1,562\.1 MB, not the file: run `git lfs pull`"),
    "code": (
        torch_file(lambda path: {"model": STATE, "extra": Payload(path.with_name("trace"))}),
        r"holds a pickled object \(posix\.mkdir\), which is code, not weights: refused, nothing in it was run",
    ),
    "code in a plain pickle": (
        lambda path: path.write_bytes(pickle.dumps(Payload(path.with_name("trace")))),
        r"is a plain pickle that torch\.save did not write: refused unread, since pickles can hold code",
    ),
    "class count": (
        torch_file(lambda _: state(num_classes=7)),
        r"head\.weight \(expected 5x16, found 7x16\)[\s\S]*the head was trained for other classes",
    ),
    "plain mamba": (
        torch_file(lambda _: PLAIN),
        r"14 missing: layers\.0\.mixer\.A_b_log[\s\S]*blocks without \*_b keys are plain Mamba's",
    ),
    "nan": (
        torch_file(replaced("norm_f.weight", torch.full((16,), float("nan")))),
        r"holds NaN or infinite values in norm_f\.weight: such a model cannot be used; the training run diverged",
    ),
    "quantised": (
        torch_file(replaced("head.weight", torch.zeros(5, 16, dtype=torch.int8))),
        r"head\.weight is torch\.int8, not floating point; quantised weights are not supported",
    ),
    "another model": (
        torch_file(lambda _: {"conv1.weight": torch.zeros(4, 3, 7, 7)}),
        r"this is not a Vision Mamba, VideoMamba or Mamba-Reg: no tensor 'patch_embed\.proj\.weight'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_has_its_own_message(kind: str, tmp_path: Path) -> None:
    """The error names the file, and no code in the file is run."""
    make, message = BROKEN[kind]
    path = tmp_path / "vim.pth"
    make(path)

    with pytest.raises(WeightsError, match=message) as caught:
        load(path, config=TINY, device="cpu")

    assert str(path) in str(caught.value)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors},
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}, "epoch": 3},
    ],
)
def test_wrapped_keys_work(wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    """Keys prefixed by DistributedDataParallel and common training programs are accepted."""
    torch.save(STATE, tmp_path / "plain.pth")
    torch.save(wrap(STATE), tmp_path / "wrapped.pth")

    assert load(tmp_path / "wrapped.pth").fingerprint == load(tmp_path / "plain.pth").fingerprint


def test_plain_mamba_without_a_configuration_works_and_warns(tmp_path: Path) -> None:
    """A plain Mamba loads, and its first assumption says that half of the model may be missing."""
    torch.save(PLAIN, tmp_path / "vim.pth")

    vim = load(tmp_path / "vim.pth", device="cpu")

    assert vim.config.bimamba == "none"
    assert "as with the plain Mamba block of stock mamba_ssm" in vim.assumptions[0]
    assert vim(torch.ones(1, 3, 32, 32)).isfinite().all()


def test_another_class_count_without_a_configuration_works(tmp_path: Path) -> None:
    """The head of a fine-tuned model decides the number of classes, and they do not get ImageNet's names."""
    torch.save(state(num_classes=7), tmp_path / "vim.pth")

    assert load(tmp_path / "vim.pth").labels.names == tuple(f"class_{index}" for index in range(7))
