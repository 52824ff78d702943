"""The fingerprint changes with the model's results and with nothing else."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.loading.fingerprint import fingerprint
from model.loading.load import load
from model.preprocessing.recipe import Preprocess
from tests.model.loading.checkpoints import TINY, rope_state, state

STATE = state()
RECIPE = Preprocess(size=32)
BASE = fingerprint(TINY, RECIPE, STATE)


def test_twelve_hex_digits() -> None:
    """A fingerprint has twelve hexadecimal digits."""
    assert len(BASE) == 12
    assert int(BASE, 16) >= 0


def test_formats_names_and_wrappers_do_not_matter(tmp_path: Path) -> None:
    """The same weights have one fingerprint as .safetensors, .pth, training checkpoint, renamed, or in a directory."""
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(dict(reversed(STATE.items())), tmp_path / "b.pth")
    torch.save({"model": {f"module.{k}": v for k, v in STATE.items()}, "args": argparse.Namespace()}, tmp_path / "c.pt")
    (tmp_path / "dir").mkdir()
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "dir" / "renamed.safetensors")
    TINY.save(tmp_path / "dir" / "config.json")

    found = {load(tmp_path / name).fingerprint for name in ("a.safetensors", "b.pth", "c.pt", "dir")}

    assert found == {BASE}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_precision_and_scan_do_not_matter(tmp_path: Path, dtype: str) -> None:
    """The dtype and the scan do not change the fingerprint."""
    torch.save(STATE, tmp_path / "a.pth")

    assert load(tmp_path / "a.pth", dtype=dtype, scan="reference").fingerprint == BASE


def test_labels_do_not_matter(tmp_path: Path) -> None:
    """The names of the classes do not change the fingerprint, because they change no score."""
    torch.save(STATE, tmp_path / "a.pth")

    assert load(tmp_path / "a.pth", labels=["a", "b", "c", "d", "e"]).fingerprint == BASE


def test_ema_weights_are_another_model(tmp_path: Path) -> None:
    """The two sets of weights of one training checkpoint have different fingerprints."""
    torch.save({"model": STATE, "model_ema": state(seed=1)}, tmp_path / "train.pth")

    assert load(tmp_path / "train.pth").fingerprint == BASE
    assert load(tmp_path / "train.pth", weights="model_ema").fingerprint != BASE


def test_rope_tables_do_not_matter() -> None:
    """RoPE tables do not change the fingerprint, because the configuration determines them and a file may lack them."""
    tensors = rope_state()
    config = TINY.replace(rope=True, class_token="first")
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("rope.")}

    assert fingerprint(config, RECIPE, tensors) == fingerprint(config, RECIPE, without)


def test_equal_numbers_are_equal() -> None:
    """A config.json may write 2 or 2.0 with the same fingerprint."""
    assert fingerprint(TINY.replace(expand=2.0), RECIPE, STATE) == fingerprint(TINY.replace(expand=2), RECIPE, STATE)


def test_the_family_does_not_matter() -> None:
    """The family does not change the fingerprint, because the other fields determine what the model computes."""
    assert BASE == fingerprint(TINY.replace(family="videomamba"), RECIPE, STATE)


def test_later_fields_change_no_older_fingerprint() -> None:
    """Fields that were added later do not change the fingerprint while they have their default."""
    spread = TINY.replace(family="mamba-reg", class_token="spread", spread_tokens=2)

    assert "7cfad46ef350" == fingerprint(TINY, RECIPE, {"head.bias": torch.arange(5.0)})
    assert fingerprint(spread, RECIPE, STATE) != fingerprint(spread.replace(spread_tokens=3), RECIPE, STATE)
    assert fingerprint(spread, RECIPE, STATE) != fingerprint(spread.replace(neck_reduction=2), RECIPE, STATE)


def test_every_ingredient_matters() -> None:
    """Configuration, recipe, mode, one bit of a weight, a name and a shape each change the fingerprint."""
    nudged = STATE | {"head.bias": torch.nextafter(STATE["head.bias"], torch.tensor(9.0))}
    swapped = STATE | {"norm_f.weight": STATE["layers.0.norm.weight"], "layers.0.norm.weight": STATE["norm_f.weight"]}
    reshaped = STATE | {"head.weight": STATE["head.weight"].reshape(16, 5)}
    found = [
        BASE,
        fingerprint(TINY.replace(class_token="first"), RECIPE, STATE),
        fingerprint(TINY.replace(norm_epsilon=1e-6), RECIPE, STATE),
        fingerprint(TINY, Preprocess(size=32, mode="friendly"), STATE),
        fingerprint(TINY, Preprocess(size=32, crop_ratio=1.0), STATE),
        fingerprint(TINY, RECIPE, nudged),
        fingerprint(TINY, RECIPE, swapped),
        fingerprint(TINY, RECIPE, reshaped),
    ]

    assert len(set(found)) == len(found)
