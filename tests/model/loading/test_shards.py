"""A model in several files is read whole, or the error names what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model import load
from model.errors import WeightsError
from model.loading.load import read
from tests.model.loading.checkpoints import TINY, state

STATE = state()
NAMES = sorted(STATE)
PARTS = {"model-00001-of-00002": NAMES[:12], "model-00002-of-00002": NAMES[12:]}


@pytest.fixture(params=["safetensors", "bin"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with a model in two shards, as Hugging Face's libraries write it, and an unrelated file."""
    suffix, stem = request.param, {"safetensors": "model", "bin": "pytorch_model"}[request.param]
    for part, names in PARTS.items():
        tensors = {name: STATE[name].contiguous() for name in names}
        path = tmp_path / f"{part.replace('model', stem)}.{suffix}"
        save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    places = {name: f"{part.replace('model', stem)}.{suffix}" for part, names in PARTS.items() for name in names}
    write_index(tmp_path / f"{stem}.{suffix}.index.json", places)
    torch.save({"epoch": torch.zeros(1)}, tmp_path / "training_args.pt")
    TINY.save(tmp_path / "config.json")
    return tmp_path


def write_index(path: Path, places: Any) -> None:
    """Write an index."""
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def index(directory: Path) -> Path:
    """The index of a directory."""
    return next(directory.glob("*.index.json"))


def test_a_sharded_model_is_the_same_model(directory: Path) -> None:
    """By directory or by index, the weights and the fingerprint are those of one file."""
    torch.save(STATE, directory.parent / "whole.pth")
    whole = load(directory.parent / "whole.pth", config=TINY)

    assert whole.fingerprint == load(directory).fingerprint == load(index(directory), config=TINY).fingerprint
    contents = read(directory)
    assert contents.checkpoint.format.endswith(", in shards")
    assert sum(file.stat().st_size for file in directory.glob("*-of-*")) == contents.checkpoint.size


def test_one_shard_alone_is_named_as_such(directory: Path) -> None:
    """The error says what the file is and what to give instead."""
    shard = min(directory.glob("*-of-*"))

    with pytest.raises(WeightsError, match="is one of several shards: give its directory"):
        load(shard)


def test_what_is_missing_is_named(directory: Path) -> None:
    """The error names a missing shard, and a tensor that is in the index but not in its shard."""
    first, second = sorted(directory.glob("*-of-*"))
    places = json.loads(index(directory).read_text())["weight_map"]
    write_index(index(directory), places | {"head.bias": second.name, NAMES[-1]: first.name})
    with pytest.raises(WeightsError, match=rf"has no tensor '\S+', which {index(directory).name} lists"):
        load(directory)
    second.unlink()
    write_index(index(directory), places)

    with pytest.raises(WeightsError, match=rf"lists {second.name}, which is not there"):
        load(directory)


def test_tensors_that_the_index_does_not_list_are_left_out(directory: Path) -> None:
    """Tensors that the index does not list are dropped, and the notes name them."""
    places = json.loads(index(directory).read_text())["weight_map"]
    left = {name: file for name, file in places.items() if not name.startswith("head.")}
    write_index(index(directory), left)

    contents = read(directory, config=TINY.replace(num_classes=0))

    assert ("left out 2 tensors that are counters or not in the index, such as head.bias",) == contents.checkpoint.notes


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "is not an index of shards"),
        ("[]", "is not an index of shards"),
        ('{"weight_map": 1}', "is not an index of shards"),
        ('{"weight_map": {"a": "../secret.bin"}}', "names the file '../secret.bin', which is not beside it"),
    ],
)
def test_a_broken_index_is_an_error_of_ours(tmp_path: Path, text: str, error: str) -> None:
    """The error names a damaged index, and an index cannot name files in other directories."""
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)

    with pytest.raises(WeightsError, match=error):
        load(path)


def test_shards_have_one_set_of_weights(directory: Path) -> None:
    """Requesting model_ema from shards is an error."""
    with pytest.raises(WeightsError, match="has no weights 'model_ema'"):
        load(directory, weights="model_ema")
