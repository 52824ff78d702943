"""Files of other models are named, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.errors import WeightsError
from model.loading.infer_config import UNPUBLISHED, Hints, infer
from model.loading.load import read
from model.loading.others import verdict
from tests.golden import SHARED, needs_shared
from tests.model.loading.checkpoints import TINY, state

OTHERS = {
    "layers.0.mixer.in_proj.lora_A.weight": "LoRA adapters: merge them",
    "pos_embed_cls": r"a Mamba-Reg \(class tokens spread through the sequence\): not supported",
    "temporal_pos_embedding": "a video model of VideoMamba",
    "head_dist.weight": "a distilled model with two heads",
    "decoder_blocks.0.norm.weight": "a model of masked pre-training, without classes: save its encoder alone",
    "decode_head.conv_seg.weight": "a model for detection or segmentation: save its backbone alone",
    "blocks.0.attn.qkv.weight": "a transformer",
    "layer1.0.conv1.weight": "a convolutional network",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_named(name: str) -> None:
    """The error says what the file is, whether the architecture is inferred or given."""
    tensors = state() | {name: torch.zeros(1)}

    with pytest.raises(WeightsError, match=f"this is {OTHERS[name]}"):
        infer(tensors, Hints())


def test_a_given_configuration_does_not_hide_it(tmp_path: Path) -> None:
    """Then it is the likely cause of tensors that do not fit."""
    torch.save(state() | {"pos_embed_cls": torch.zeros(1, 4, 16)}, tmp_path / "mambar.pth")

    with pytest.raises(WeightsError, match="likely cause: this is a Mamba-Reg"):
        read(tmp_path / "mambar.pth", config=TINY)


def test_videos_are_told_by_their_patches() -> None:
    """Their patches have five axes."""
    assert "video" in str(verdict(state() | {"patch_embed.proj.weight": torch.zeros(16, 3, 1, 8, 8)}))


def test_nothing_is_said_of_image_models() -> None:
    """Neither of usual files, nor of unknown ones."""
    assert verdict(state()) is None
    assert verdict({"weight": torch.zeros(1)}) is None


@needs_shared
def test_mamba_reg_is_recognised() -> None:
    """The files of the golden data."""
    directory = SHARED / "golden" / "relatives" / "mambareg"
    files = sorted(directory.glob("*.pth"))
    assert files
    for file in files:
        with pytest.raises(WeightsError, match="Mamba-Reg"):
            read(file)


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
    """As other libraries write them into config.json; nothing is assumed then."""
    contents = read(directory(tmp_path, written, state()))

    assert TINY.replace(class_token="first", divide_out=False) == contents.config
    assert () == contents.assumptions


def test_arguments_that_both_families_have_do_not_tell_which_it_is(tmp_path: Path) -> None:
    """They are used with a family; without one the tensors decide, and the assumptions say so."""
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


def test_a_config_without_an_architecture_is_not_used(tmp_path: Path) -> None:
    """timm's file names the model only: the architecture is inferred, and the assumptions say so."""
    written = {"architecture": "vim_tiny_patch16_224", "num_classes": 5, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    contents = read(directory(tmp_path, written, state()))

    assert TINY == contents.config
    assert "nothing from config.json: it is a file of timm" in contents.assumptions[0]


def directory(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """A directory with this config.json and these weights."""
    (path / "config.json").write_text(json.dumps(config))
    torch.save(tensors, path / "model.pth")
    return path
