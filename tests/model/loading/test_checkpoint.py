"""Files of weights are read safely, and other files are identified in the error."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.errors import WeightsError
from model.loading.checkpoint import read
from tests.model.loading.checkpoints import state

STATE = state()
EMA = state(seed=1)


def training(**changes: Any) -> dict[str, Any]:
    """The dict that the reference's main.py saves."""
    args = argparse.Namespace(model="vim_tiny", input_size=224)
    saved = {"model": STATE, "optimizer": {"state": {0: torch.ones(3)}}, "epoch": 7, "model_ema": EMA}
    return saved | {"scaler": "none", "args": args} | changes


def saved(path: Path, content: Any, **options: Any) -> Path:
    """Save an object as a .pth file and return its path."""
    torch.save(content, path, **options)
    return path


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Both have the same names and values, as float32."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.float(), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
def test_formats_are_told_by_content(tmp_path: Path, suffix: str) -> None:
    """Both formats give the same tensors, whatever the file's name."""
    save_file(STATE, tmp_path / f"a.{suffix}")
    torch.save(STATE, tmp_path / f"b.{suffix}")

    first, second = read(tmp_path / f"a.{suffix}"), read(tmp_path / f"b.{suffix}")

    assert (first.format, second.format) == ("safetensors", "torch")
    assert_same(first.tensors, STATE)
    assert_same(second.tensors, STATE)


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    """Checkpoints of torch before 1.6, which are not zip archives, are read."""
    found = read(saved(tmp_path / "old.pth", STATE, _use_new_zipfile_serialization=False))

    assert found.format == "torch (before 1.6)"
    assert_same(found.tensors, STATE)


@pytest.mark.parametrize(("weights", "expected"), [("model", STATE), ("model_ema", EMA)])
def test_training_checkpoint_gives_the_chosen_weights(
    tmp_path: Path, weights: str, expected: dict[str, Tensor]
) -> None:
    """A training checkpoint with optimizer, EMA and Namespace gives the requested weights and the arguments."""
    found = read(saved(tmp_path / "train.pth", training()), weights)

    assert_same(found.tensors, expected)
    assert found.unwrapped == (weights,)
    assert found.keys == ("model", "optimizer", "epoch", "model_ema", "scaler", "args")
    assert found.args["input_size"] == 224


@pytest.mark.parametrize(
    "trail",
    [
        ("state_dict",),
        ("model",),
        ("model_state_dict",),
        ("net",),
        ("model_state",),
        ("module",),
        ("model", "state_dict"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, trail: tuple[str, ...], prefix: str) -> None:
    """Wrappers of common training programs and prefixes of DistributedDataParallel and torch.compile are removed."""
    content: dict[str, Any] = {prefix + name: tensor for name, tensor in STATE.items()}
    for name in reversed(trail):
        content = {name: content, "epoch": 3}

    found = read(saved(tmp_path / "wrapped.pth", content))

    assert found.unwrapped == trail
    assert_same(found.tensors, STATE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """Weights are converted to float32, the precision in which fingerprints are computed."""
    halved = {name: tensor.to(dtype) for name, tensor in STATE.items()}

    assert_same(read(saved(tmp_path / "half.pth", halved)).tensors, halved)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_outlive_their_file(tmp_path: Path, suffix: str) -> None:
    """Overwriting or truncating a loaded file does not change the weights, because nothing stays mapped."""
    path = tmp_path / f"w.{suffix}"
    torch.save(STATE, path) if suffix == "pth" else save_file(STATE, path)
    found = read(path)
    os.truncate(path, 0)

    assert_same(found.tensors, STATE)


class Payload:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    """The error names the function in the pickle, and the function is never called."""
    content = training(extra=Payload(tmp_path / "trace"))
    path = saved(tmp_path / "evil.pth", content, _use_new_zipfile_serialization=zipped)

    with pytest.raises(WeightsError, match=r"posix\.mkdir.*is code.*nothing in it was run"):
        read(path)

    assert not (tmp_path / "trace").exists()


HARMLESS = {
    "numpy scalars": (np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)),
    "numpy arrays": (np.arange(3.0), np.arange(3, dtype=np.int32), np.array(["a", "b"])),
    "paths": (PosixPath("/data"), PurePosixPath("runs"), Namespace(output=PosixPath("/data"))),
    "times": (datetime(2026, 1, 2, tzinfo=UTC), date(2026, 1, 2), timedelta(1)),
    "dicts": (defaultdict(list, {"loss": [0.5]}), OrderedDict(a=1), Counter("ab")),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", HARMLESS)
def test_values_that_training_programs_keep_are_read(tmp_path: Path, kind: str, zipped: bool) -> None:
    """Metrics, paths, dates and command lines beside the weights are no code."""
    content = training(extra=HARMLESS[kind])

    assert_same(read(saved(tmp_path / "train.pth", content, _use_new_zipfile_serialization=zipped)).tensors, STATE)


def test_a_plain_pickle_is_not_even_parsed(tmp_path: Path) -> None:
    """Pickles that torch.save did not write are refused without unpickling them."""
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "trace")))

    with pytest.raises(WeightsError, match="plain pickle"):
        read(path)

    assert not (tmp_path / "trace").exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    """A file of torch.save(model), instead of its state dict, is refused."""
    with pytest.raises(WeightsError, match=r"Linear\), which is code.*save its state dict"):
        read(saved(tmp_path / "module.pth", torch.nn.Linear(1, 1)))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 109700000\n"
OTHER_FILES = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "lfs": (LFS, r"git-lfs pointer to a file of 109\.7 MB.*git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html>Sign in</html>", "HTML or XML page"),
    "html in capitals": (b"<HTML><body>404</body></HTML>", "HTML or XML page"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "HTML or XML page"),
    "json": (b'{"error": "Repository not found"}', "JSON text"),
    "gzip": (b"\x1f\x8b\x08\x00 and so on", "compressed archive"),
    "zeros": (bytes(4096), "starts with zeros"),
    "image": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "neither safetensors nor a torch checkpoint"),
    "zip start": (b"PK\x03\x04" + bytes(100), "cut short or damaged"),
    "old start": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80", "cut short or damaged"),
    "safetensors start": (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "safetensors file cut short"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_files_that_are_no_weights_are_named(tmp_path: Path, kind: str) -> None:
    """The error says what kind of file it is."""
    content, message = OTHER_FILES[kind]
    (tmp_path / "weights.pth").write_bytes(content)

    with pytest.raises(WeightsError, match=message):
        read(tmp_path / "weights.pth")


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_half_downloads_are_called_so(tmp_path: Path, form: str) -> None:
    """Wherever a file is truncated, the WeightsError says that it is truncated or not a file of weights."""
    whole = tmp_path / "whole"
    if form == "safetensors":
        save_file(STATE, whole)
    else:
        saved(whole, training(), _use_new_zipfile_serialization=form == "zip")
    size = whole.stat().st_size
    for kept in [1, 5, 8, 9, 60, 200, *range(1000, size, size // 12), size - 1]:
        shutil.copy(whole, tmp_path / "cut")
        os.truncate(tmp_path / "cut", kept)

        with pytest.raises(WeightsError, match="cut short or damaged|neither safetensors nor|refused"):
            read(tmp_path / "cut")


def test_other_archives_are_named(tmp_path: Path) -> None:
    """A zip of other content and a TorchScript program are identified in the error."""
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("cat.jpg", "")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", "")
        archive.writestr("script/constants.pkl", "")

    with pytest.raises(WeightsError, match=r"zip archive of cat\.jpg"):
        read(tmp_path / "photos.pth")
    with pytest.raises(WeightsError, match="TorchScript"):
        read(tmp_path / "script.pt")


CIRCLE: dict[str, Any] = {}
CIRCLE["model"] = CIRCLE
CONTENTS = {
    "a list": ([1, 2], r"holds list, not a state dict"),
    "a tensor": (torch.zeros(2, 3), r"holds a tensor of shape \(2, 3\)"),
    "nothing": ({}, "it is empty"),
    "settings": ({"epoch": 3, "lr": 0.1}, r"its keys are epoch \(int\), lr \(float\)"),
    "optimizer only": ({"optimizer": {}, "model": {"lr": 1}}, r"under model: its keys are lr \(int\)"),
    "numbered": ({0: torch.zeros(1)}, "no state dict"),
    "itself": (CIRCLE, r"under model / model"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_contents_that_are_no_state_dict_are_named(tmp_path: Path, kind: str) -> None:
    """A torch file that contains another kind of object is refused, and the error names the kind."""
    content, message = CONTENTS[kind]

    with pytest.raises(WeightsError, match=message):
        read(saved(tmp_path / "x.pth", content))


def test_missing_ema_lists_what_there_is(tmp_path: Path) -> None:
    """Requesting `model_ema` from a file without it raises an error that lists the file's keys."""
    without = training()
    del without["model_ema"]

    with pytest.raises(WeightsError, match=r"no weights 'model_ema': its keys are model \(dict\), optimizer"):
        read(saved(tmp_path / "train.pth", without), "model_ema")
    with pytest.raises(WeightsError, match=r"one plain state dict of \d+ tensors; load it with weights='model'"):
        read(saved(tmp_path / "plain.pth", STATE), "model_ema")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_cannot_answer_are_refused(tmp_path: Path, value: float) -> None:
    """Weights with NaN or infinity are refused, and the error names the tensors."""
    broken = STATE | {"norm_f.weight": torch.full((16,), value)}

    with pytest.raises(WeightsError, match=r"NaN or infinite values in norm_f\.weight: "):
        read(saved(tmp_path / "nan.pth", broken))


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    """Integer tensors are refused as weights."""
    with pytest.raises(WeightsError, match=r"head\.weight is torch\.int8"):
        read(saved(tmp_path / "int8.pth", STATE | {"head.weight": torch.zeros(5, 16, dtype=torch.int8)}))


def test_an_unreadable_path_is_an_error_of_ours(tmp_path: Path) -> None:
    """Missing files and directories raise WeightsError."""
    with pytest.raises(WeightsError, match="cannot read"):
        read(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="cannot read"):
        read(tmp_path)
