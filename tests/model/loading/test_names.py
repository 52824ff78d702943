"""Names as training programs write them become the usual ones, and every change is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.loading.names import usual
from tests.model.loading.checkpoints import state

STATE = state()


def same(found: dict[str, Tensor]) -> bool:
    """Whether these are the usual tensors."""
    return found.keys() == STATE.keys() and all(found[name].equal(STATE[name]) for name in STATE)


@pytest.mark.parametrize(
    "prefix", ["model.", "backbone.", "net.", "encoder.", "model.backbone.", "module.", "_orig_mod.module."]
)
def test_one_prefix_before_every_name_is_removed(prefix: str) -> None:
    """Whatever the prefix is, if every name has it."""
    found, notes = usual({prefix + name: tensor for name, tensor in STATE.items()})

    assert same(found)
    assert (f"every name without its prefix {prefix!r}",) == notes


def test_names_with_and_without_a_prefix_stay() -> None:
    """A file that holds more than one model is not taken apart."""
    tensors = {f"encoder.{name}": tensor for name, tensor in STATE.items()} | {"decoder.weight": torch.zeros(1)}

    assert (tensors, ()) == usual(tensors)


def test_usual_names_are_left_alone() -> None:
    """Nothing is renamed, and nothing is said."""
    found, notes = usual(STATE)

    assert same(found)
    assert () == notes


def test_counters_are_left_out() -> None:
    """Counters of averaged models, of batch norms and of the profiler thop are no weights."""
    counters = ("n_averaged", "neck.num_batches_tracked", "total_ops", "layers.0.mixer.total_params")
    found, notes = usual(STATE | {name: torch.tensor(3) for name in counters})

    assert same(found)
    assert ("left out 4 counters, such as n_averaged",) == notes
    averaged = {f"module.{name}": tensor for name, tensor in STATE.items()} | {"n_averaged": torch.tensor(3)}
    assert same(usual(averaged)[0])


@pytest.mark.parametrize("root", ["head.1", "fc", "classifier"])
def test_a_head_by_another_name_is_the_head(root: str) -> None:
    """A linear layer behind a dropout, and the names of other libraries."""
    found, notes = usual({name.replace("head.", f"{root}."): tensor for name, tensor in STATE.items()})

    assert same(found)
    assert (f"{root} is the head",) == notes


def test_two_candidates_for_the_head_are_not_decided() -> None:
    """What remains is reported when the tensors are compared with the architecture."""
    tensors = {name: tensor for name, tensor in STATE.items() if not name.startswith("head.")}
    tensors |= {"head.0.weight": torch.zeros(4, 16), "head.2.weight": torch.zeros(5, 4)}

    assert (tensors, ()) == usual(tensors)


def test_a_head_without_a_bias_gets_zeros() -> None:
    """`Linear(bias=False)` computes the same as a bias of zeros."""
    found, notes = usual({name: tensor for name, tensor in STATE.items() if name != "head.bias"})

    assert found.keys() == STATE.keys()
    assert not found["head.bias"].any()
    assert ("the head has no bias: zeros",) == notes
