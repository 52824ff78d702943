"""Names of training programs become the usual ones, every change is reported, and other models are identified."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.errors import WeightsError
from model.loading.hints import Hints
from model.loading.infer_config import infer
from model.loading.load import read
from model.loading.names import usual, verdict
from tests.model.loading.checkpoints import TINY, state

STATE = state()


def same(found: dict[str, Tensor]) -> bool:
    """Return whether these are the usual tensors."""
    return found.keys() == STATE.keys() and all(found[name].equal(STATE[name]) for name in STATE)


@pytest.mark.parametrize(
    "prefix", ["model.", "backbone.", "net.", "encoder.", "model.backbone.", "module.", "_orig_mod.module."]
)
def test_one_prefix_before_every_name_is_removed(prefix: str) -> None:
    """Any prefix is removed if every name has it."""
    found, notes = usual({prefix + name: tensor for name, tensor in STATE.items()})

    assert same(found)
    assert (f"every name without its prefix {prefix!r}",) == notes


def test_names_with_and_without_a_prefix_stay() -> None:
    """Names of which only some have a prefix stay: the file may hold more than one model."""
    tensors = {f"encoder.{name}": tensor for name, tensor in STATE.items()} | {"decoder.weight": torch.zeros(1)}

    assert (tensors, ()) == usual(tensors)


def test_usual_names_are_left_alone() -> None:
    """Usual names are not renamed, and no change is reported."""
    found, notes = usual(STATE)

    assert same(found)
    assert () == notes


def test_counters_are_left_out() -> None:
    """Counters of averaged models, of batch norms and of the profiler thop are left out."""
    counters = ("n_averaged", "neck.num_batches_tracked", "total_ops", "layers.0.mixer.total_params")
    found, notes = usual(STATE | {name: torch.tensor(3) for name in counters})

    assert same(found)
    assert ("left out 4 counters, such as n_averaged",) == notes
    averaged = {f"module.{name}": tensor for name, tensor in STATE.items()} | {"n_averaged": torch.tensor(3)}
    assert same(usual(averaged)[0])


@pytest.mark.parametrize("root", ["head.1", "fc", "classifier"])
def test_a_head_by_another_name_is_the_head(root: str) -> None:
    """The head is recognised after a dropout layer and by the names of other libraries."""
    found, notes = usual({name.replace("head.", f"{root}."): tensor for name, tensor in STATE.items()})

    assert same(found)
    assert (f"{root} is the head",) == notes


def test_two_candidates_for_the_head_are_not_decided() -> None:
    """With two candidates for the head none is renamed; the comparison with the architecture reports them."""
    tensors = {name: tensor for name, tensor in STATE.items() if not name.startswith("head.")}
    tensors |= {"head.0.weight": torch.zeros(4, 16), "head.2.weight": torch.zeros(5, 4)}

    assert (tensors, ()) == usual(tensors)


def test_a_head_without_a_bias_gets_zeros() -> None:
    """A head without a bias gets a bias of zeros, which gives the same results."""
    found, notes = usual({name: tensor for name, tensor in STATE.items() if name != "head.bias"})

    assert found.keys() == STATE.keys()
    assert not found["head.bias"].any()
    assert ("the head has no bias: zeros",) == notes


OTHERS = {
    "layers.0.mixer.in_proj.lora_A.weight": "LoRA adapters: merge them",
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
    """With a given configuration the error has the kind of model as the likely cause."""
    torch.save(state() | {"temporal_pos_embedding": torch.zeros(1, 4, 16)}, tmp_path / "video.pth")

    with pytest.raises(WeightsError, match="likely cause: this is a video model"):
        read(tmp_path / "video.pth", config=TINY)


def test_videos_are_told_by_their_patches() -> None:
    """Video models are recognised by patches with five axes."""
    assert "video" in str(verdict(state() | {"patch_embed.proj.weight": torch.zeros(16, 3, 1, 8, 8)}))


def test_nothing_is_said_of_image_models() -> None:
    """`verdict` returns None for image models and for unknown tensors."""
    assert verdict(state()) is None
    assert verdict({"weight": torch.zeros(1)}) is None
