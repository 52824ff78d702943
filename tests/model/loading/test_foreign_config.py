"""`config.json` of other programs: arguments of the references' constructors are used, other content is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.loading.infer_config import UNPUBLISHED
from model.loading.load import read
from tests.model.loading.checkpoints import TINY, state

SPREAD = ("family", "class_token", "spread_tokens", "neck_reduction", "norm", "d_state")
ARGUMENTS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "stride": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_classes": 5,
    "d_state": 4,
    "if_cls_token": True,
    "use_middle_cls_token": False,
    "if_divide_out": False,
    "drop_path_rate": 0.1,
}


@pytest.mark.parametrize(
    "written",
    [
        ARGUMENTS,
        ARGUMENTS | {"architectures": ["VisionMamba"], "model_type": "vim", "transformers_version": "5.0"},
        {"architecture": "vim_tiny", "num_classes": 5, "pretrained_cfg": {}, "model_args": ARGUMENTS},
    ],
    ids=["PyTorchModelHubMixin", "transformers", "timm"],
)
def test_arguments_of_the_reference_in_a_config_are_translated(tmp_path: Path, written: dict[str, Any]) -> None:
    """Constructor arguments in another library's config.json are used, and nothing is assumed."""
    contents = read(directory(tmp_path, written, state()))

    assert TINY.replace(class_token="first", divide_out=False) == contents.config
    assert () == contents.assumptions


def test_arguments_that_both_families_have_do_not_tell_which_it_is(tmp_path: Path) -> None:
    """Arguments of two families are used if the family is given; otherwise the tensors decide, as an assumption."""
    both = {name: value for name, value in ARGUMENTS.items() if name in ("img_size", "patch_size", "stride", "depth")}
    both |= {"embed_dim": 16, "num_classes": 5}
    place = directory(tmp_path, both, state(d_state=16))
    expected = TINY.replace(d_state=16)

    assert UNPUBLISHED in read(place).assumptions
    assert expected == read(place, family="vim").config
    videomamba = expected.replace(family="videomamba", class_token="first", divide_out=False)
    assert videomamba == read(place, family="videomamba").config
    directory(tmp_path, both | {"bimamba": True}, state(d_state=16))
    assert videomamba == read(place).config


def test_arguments_of_mamba_reg_are_recognised(tmp_path: Path) -> None:
    """Mamba-Reg is recognised by its number of class tokens; it has no stride, and LayerNorm by default."""
    spread = TINY.replace(
        family="mamba-reg", class_token="spread", spread_tokens=3, neck_reduction=2, norm="layer", d_state=16
    )
    changes = {name: getattr(spread, name) for name in SPREAD}
    arguments = {name: ARGUMENTS[name] for name in ("img_size", "patch_size", "embed_dim", "depth", "num_classes")}
    place = directory(tmp_path, arguments | {"num_cls_tokens": 3, "cls_reduce": 2}, state(**changes))

    assert spread == read(place).config


def test_a_config_without_an_architecture_is_not_used(tmp_path: Path) -> None:
    """timm's config.json names only the model, so the architecture is inferred, which is an assumption."""
    written = {"architecture": "vim_tiny_patch16_224", "num_classes": 5, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    contents = read(directory(tmp_path, written, state()))

    assert TINY == contents.config
    assert "config.json is not used: it is a file of timm" in contents.assumptions[0]


def directory(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """A directory with this config.json and these weights."""
    (path / "config.json").write_text(json.dumps(config))
    torch.save(tensors, path / "model.pth")
    return path
