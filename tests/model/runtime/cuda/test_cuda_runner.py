"""The runner's logic without a GPU: right rows for any order of streams, padding, memory, failing graphs, NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.preprocessing.recipe import Preprocess
from model.runtime.cuda.accelerator import Accelerator
from model.runtime.cuda.runner import CudaRunner, SubmittedBatch
from model.runtime.pixel_model import PARTS, PixelModel
from model.runtime.runner import BatchRunner, Rows, Runner
from model.scan import choose
from model.vim import Vim
from tests.model.runtime.cuda.streams import Shuffled
from tests.tiny import CONFIG, tiny_vim

SMALL = CONFIG.replace(image_size=(32, 32), depth=1)
SIZE, SLOTS = SMALL.image_size[0], 12
SEEDS = range(5)


def arena(seed: int = 0) -> np.ndarray:
    """Return slots with seeded noise."""
    return np.random.default_rng(seed).integers(0, 256, (SLOTS, SIZE, SIZE, 3), np.uint8)


def model_with(classes: int = CONFIG.num_classes) -> Vim:
    """Return the tiny model with a recipe."""
    vim = tiny_vim(SMALL.replace(num_classes=classes))
    vim.preprocess = Preprocess(SIZE)
    return vim


def warm(accelerator: Shuffled, slots: np.ndarray, max_batch: int = 6, vim: Vim | None = None) -> CudaRunner:
    """Return a runner after its start-up."""
    runner = CudaRunner(vim or model_with(), accelerator, max_batch=max_batch)
    runner.attach(slots)
    list(runner.warm_up())
    return runner


def expected_rows(slots: np.ndarray, indices: list[int]) -> Rows:
    """Return the rows of the plain runner."""
    return Runner(model_with()).run(slots[indices], scores=True, cls=True, mean=True)


def check(found: Rows, expected: Rows) -> None:
    """Compare all parts, up to rounding."""
    for part in PARTS:
        np.testing.assert_allclose(getattr(found, part), getattr(expected, part), rtol=0, atol=1e-5)
    assert found.finite.all()


def test_both_runners_and_both_devices_keep_the_protocols() -> None:
    """Both runners and both devices have the types of their protocols, which mypy checks."""
    runners: list[BatchRunner] = [Runner(model_with()), CudaRunner(model_with(), Shuffled())]
    devices: list[Accelerator] = [Shuffled()]

    assert [1, 2] == [runner.depth for runner in runners]
    assert [torch.device("cpu")] == [device.device for device in devices]


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("images", [1, 2, 3, 5, 6])
def test_a_batch_gives_the_plain_runners_rows(images: int, locked: bool) -> None:
    """Batches of every size equal the plain runner's rows, with page-locked slots and with gathered ones."""
    accelerator, slots = Shuffled(), arena()
    accelerator.lock_failure = None if locked else "cudaHostRegister: operation not supported"
    runner, indices = warm(accelerator, slots), [7, 8, 2, 11, 0, 1][:images]

    check(runner.collect(runner.submit(indices, PARTS)), expected_rows(slots, indices))


@pytest.mark.parametrize("seed", SEEDS)
def test_two_batches_in_flight_do_not_mix(seed: int) -> None:
    """Two batches in flight stay separate in any order of streams, also if slots of a collected batch are reused."""
    slots = arena()
    runner, order = warm(Shuffled(seed), slots), np.random.default_rng(seed)
    in_flight: list[tuple[list[int], SubmittedBatch, Rows]] = []
    for turn in range(6):
        free = [slot for slot in range(SLOTS) if not any(slot in indices for indices, _, _ in in_flight)]
        indices = [int(slot) for slot in order.choice(free, 1 + turn % 5, replace=False)]
        slots[indices] = order.integers(0, 256, slots[indices].shape, np.uint8)
        in_flight.append((indices, runner.submit(indices, PARTS), expected_rows(slots, indices)))
        if len(in_flight) == 2:
            _, batch, expected = in_flight.pop(0)
            check(runner.collect(batch), expected)


def test_the_stand_in_notices_a_missing_wait() -> None:
    """The stand-in device detects a missing wait, so the test above is meaningful."""

    def goes_wrong(seed: int) -> bool:
        accelerator, slots = Shuffled(seed), arena()
        runner = warm(accelerator, slots)
        accelerator.deaf = True
        found = runner.collect(runner.submit([3, 5, 9], PARTS))
        expected = expected_rows(slots, [3, 5, 9]).cls
        assert found.cls is not None
        assert expected is not None
        return not np.allclose(found.cls, expected, atol=1e-3)

    assert any(goes_wrong(seed) for seed in SEEDS)


def test_more_batches_than_buffers_are_refused() -> None:
    """A third batch in flight is refused, because it would overwrite another."""
    runner = warm(Shuffled(), arena())
    first = runner.submit([0], PARTS)
    runner.submit([1], PARTS)

    with pytest.raises(RuntimeError, match="more than 2 batches"):
        runner.submit([2], PARTS)
    runner.collect(first)
    runner.submit([2], PARTS)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    """Five images in the graph for six give bit for bit the same rows after different batches."""
    slots = arena()
    runner = warm(Shuffled(), slots)
    answers = []
    for before in ([5, 6, 7, 8, 9, 10], [11, 11, 11, 11, 11, 11]):
        runner.collect(runner.submit(before, PARTS))
        answers.append(runner.collect(runner.submit([0, 1, 2, 3, 4], PARTS)))

    for part in PARTS:
        np.testing.assert_array_equal(getattr(answers[0], part), getattr(answers[1], part))


def test_an_image_answers_the_same_alone_and_in_a_full_batch() -> None:
    """An image's rows differ by at most 1e-5 between a batch of one and a full batch, in float32."""
    runner = warm(Shuffled(), arena())
    together = runner.collect(runner.submit([0, 1, 2, 3, 4, 5], PARTS))
    for index in range(6):
        alone = runner.collect(runner.submit([index], PARTS))
        for part in PARTS:
            np.testing.assert_allclose(getattr(alone, part)[0], getattr(together, part)[index], atol=1e-5)


def test_neighbouring_slots_travel_in_one_copy() -> None:
    """Neighbouring slots are one copy to the device, and input and rows one copy each."""
    accelerator = Shuffled()
    runner = warm(accelerator, arena())
    accelerator.copies = 0
    runner.collect(runner.submit([3, 4, 5, 9], PARTS))

    assert 2 + 1 + 1 == accelerator.copies


def test_the_warm_up_names_its_sizes_and_records_the_largest_graph_first() -> None:
    """The largest graph is recorded first, and the smaller ones use its memory."""
    accelerator = Shuffled()
    runner = CudaRunner(model_with(), accelerator, max_batch=6)
    runner.attach(arena())

    assert [1, 2, 4, 6] == [size for size, _ in runner.warm_up()]
    assert [6, 4, 2, 1] == accelerator.captured
    assert "batches of 1, 2, 4, 6" == runner.describe()["graphs"]


def test_a_batch_is_never_larger_than_the_slots() -> None:
    """The largest batch is limited to the number of slots, which it could not exceed."""
    assert SLOTS == warm(Shuffled(), arena(), max_batch=128).max_batch


def test_memory_that_would_not_do_is_not_tried() -> None:
    """A size that would exceed the memory, judging by the previous size, is not tried."""
    accelerator = Shuffled(capacity=550, bytes_per_image=100)
    runner = warm(accelerator, arena(), max_batch=8)

    assert 4 == runner.max_batch
    assert [1, 2, 4] == accelerator.tried


def test_running_out_of_memory_lowers_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a size runs out of memory despite the forecast, the largest batch is the previous size."""
    accelerator, slots = Shuffled(capacity=350, bytes_per_image=100), arena()
    monkeypatch.setattr(accelerator, "free", lambda: 10_000)
    runner = warm(accelerator, slots, max_batch=8)

    assert 2 == runner.max_batch
    assert [1, 2, 4] == accelerator.tried
    check(runner.collect(runner.submit([4, 6], PARTS)), expected_rows(slots, [4, 6]))


def test_a_single_image_that_does_not_fit_ends_the_start() -> None:
    """If a single image runs out of memory the start fails."""
    with pytest.raises(torch.OutOfMemoryError):
        warm(Shuffled(capacity=50, bytes_per_image=100), arena())


def test_a_graph_that_does_not_fit_drops_its_size_alone() -> None:
    """If recording the largest graph runs out of memory only that size is dropped."""
    accelerator, slots = Shuffled(), arena()
    accelerator.capture_failures[6] = torch.OutOfMemoryError("no room for the graph")
    runner = warm(accelerator, slots)

    assert 4 == runner.max_batch
    assert "batches of 1, 2, 4" == runner.graphs
    check(runner.collect(runner.submit([0, 1, 2], PARTS)), expected_rows(slots, [0, 1, 2]))


def test_without_graphs_the_kernels_run_by_themselves_and_info_says_why() -> None:
    """If a graph cannot be recorded the kernels are launched one by one, and /info gives the reason."""
    accelerator, slots = Shuffled(), arena()
    accelerator.capture_failures[2] = RuntimeError("operation not permitted when stream is capturing")
    runner = warm(accelerator, slots)

    assert 6 == runner.max_batch
    assert "none, each kernel is launched individually: operation not permitted" in runner.describe()["graphs"]
    check(runner.collect(runner.submit([0, 1, 2], PARTS)), expected_rows(slots, [0, 1, 2]))


def test_the_reason_against_page_locking_is_told() -> None:
    """If page-locking fails /info gives the reason, and pixels are copied on the host first."""
    accelerator = Shuffled()
    accelerator.lock_failure = "cudaHostRegister: operation not supported"

    assert "gathered first: cudaHostRegister: operation" in warm(accelerator, arena()).describe()["pixels"]


def test_only_the_wanted_parts_decide_and_come_back() -> None:
    """Only requested parts are returned and checked: a head full of NaN does not invalidate an embedding."""
    vim = model_with()
    assert isinstance(vim.head, torch.nn.Linear)
    vim.head.weight.data[3] = float("nan")
    runner = warm(Shuffled(), arena(), vim=vim)
    embedded = runner.collect(runner.submit([0, 1], ["cls"]))
    classified = runner.collect(runner.submit([0, 1], ["scores"]))

    assert [True, True] == embedded.finite.tolist()
    assert (None, None) == (embedded.scores, embedded.mean)
    assert [False, False] == classified.finite.tolist()


def test_a_model_without_a_head_embeds() -> None:
    """A model without a head returns rows without scores."""
    runner = warm(Shuffled(), arena(), vim=model_with(classes=0))
    rows = runner.collect(runner.submit([0, 1], ["cls", "mean"]))

    assert rows.scores is None
    assert rows.finite.all()


def test_a_device_beyond_use_is_told_by_recover(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a sticky error `recover` raises, so that the process can end."""
    accelerator = Shuffled()
    runner = warm(accelerator, arena())

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runner.recover()
    monkeypatch.setattr(accelerator, "wait_and_free", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        runner.recover()


class Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record which operators ran, and on which arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.add(str(func))
        tensors = pytree.tree_leaves((args, kwargs, out))
        self.devices |= {leaf.device.type for leaf in tensors if isinstance(leaf, Tensor)}
        return out


SPREAD = {"family": "mamba-reg", "class_token": "spread", "spread_tokens": 3, "neck_reduction": 2}


def test_spread_class_tokens_have_wider_features() -> None:
    """The rows of Mamba-Reg have the width of its head's input, the means that of a token."""
    vim = tiny_vim(SMALL.replace(**SPREAD))
    vim.preprocess = Preprocess(SIZE)
    runner = warm(Shuffled(), arena(), vim=vim)

    rows = runner.collect(runner.submit([3, 4], PARTS))

    assert rows.cls is not None
    assert (2, 48) == rows.cls.shape
    check(rows, Runner(vim).run(arena()[[3, 4]], scores=True, cls=True, mean=True))


@pytest.mark.parametrize("changes", [{}, {"flip": True}, {"class_token": "double"}, {"bimamba": "v1"}, SPREAD])
def test_a_forward_pass_brings_nothing_from_the_host(changes: dict[str, object]) -> None:
    """A forward pass copies nothing from the host, because a graph cannot record that."""
    config = SMALL.replace(**changes)
    with torch.device("meta"):
        vim = Vim(config, choose("torch", torch.device("cpu")).fn)
        vim.preprocess = Preprocess(SIZE)
        model = PixelModel(vim, narrow=True)
        pixels = torch.empty(2, SIZE, SIZE, 3, dtype=torch.uint8)
    with Ops() as ops, torch.inference_mode():
        model.parts(pixels, PARTS)

    assert {"meta"} == ops.devices
    assert set() == ops.names & {"aten.index.Tensor", "aten.lift_fresh.default", "aten.lift_fresh_copy.default"}
