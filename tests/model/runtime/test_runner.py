"""The runner: pixels in, rows out, independent of the batch; the warm-up finds the largest batch that fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.preprocessing.recipe import Preprocess
from model.runtime.runner import Runner, is_out_of_memory
from model.vim import Vim
from tests.tiny import CONFIG, tiny_vim


def runner(max_batch: int | None = None) -> Runner:
    """A runner of the tiny model."""
    vim = tiny_vim()
    vim.preprocess = Preprocess(CONFIG.image_size[0])
    return Runner(vim, max_batch=max_batch)


def pixels(count: int) -> np.ndarray:
    """Return seeded noise."""
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_scores_are_the_softmax_of_the_head_of_the_features() -> None:
    """Scores and embeddings of one pass agree."""
    run = runner()
    rows = run.run(pixels(3), scores=True, cls=True, mean=True)
    assert rows.scores is not None
    assert rows.cls is not None
    assert rows.mean is not None

    with torch.inference_mode():
        expected = run.vim.forward_head(torch.from_numpy(rows.cls)).softmax(-1).numpy()
    np.testing.assert_allclose(rows.scores, expected, atol=1e-6)
    assert (3, 32) == rows.mean.shape
    assert rows.finite.all()


@pytest.mark.parametrize(("classes", "scores"), [(1, "auto"), (7, "sigmoid")])
def test_multi_label_scores_are_independent(classes: int, scores: str) -> None:
    """With one class, or if the configuration says so, each score is the sigmoid of its logit."""
    vim = tiny_vim(CONFIG.replace(num_classes=classes, scores=scores))
    vim.preprocess = Preprocess(CONFIG.image_size[0])
    rows = Runner(vim).run(pixels(3), scores=True, cls=True, mean=False)

    with torch.inference_mode():
        logits = vim.forward_head(torch.from_numpy(np.asarray(rows.cls)))
    np.testing.assert_allclose(np.asarray(rows.scores), 1 / (1 + np.exp(-logits.numpy())), atol=1e-6)
    assert len(np.unique(np.asarray(rows.scores))) == 3 * classes


def test_only_what_is_asked_for_is_computed() -> None:
    """Parts that were not requested are None."""
    rows = runner().run(pixels(1), scores=False, cls=False, mean=True)

    assert rows.scores is None
    assert rows.cls is None
    assert rows.mean is not None


def test_an_image_answers_the_same_alone_and_in_company() -> None:
    """An image's rows differ by at most 1e-5 between a batch of one and a larger one, with the same top class."""
    run, batch = runner(), pixels(8)
    together = run.run(batch, scores=True, cls=True, mean=False)
    assert together.scores is not None
    for index in range(8):
        alone = run.run(batch[index : index + 1], scores=True, cls=True, mean=False)
        assert alone.scores is not None
        np.testing.assert_allclose(alone.scores[0], together.scores[index], atol=1e-5)
        assert alone.scores[0].argmax() == together.scores[index].argmax()


def test_rows_that_are_not_finite_are_named() -> None:
    """A NaN marks its own image's row, and other rows are unaffected."""
    run = runner()
    head = run.vim.head
    assert isinstance(head, torch.nn.Linear)
    head.weight.data[3] = float("nan")
    rows = run.run(pixels(2), scores=True, cls=True, mean=False)

    assert not rows.finite.any()


def test_warm_up_runs_every_batch_size() -> None:
    """The warm-up runs powers of two and the largest batch."""
    assert [1, 2, 4, 6] == [size for size, _ in runner(max_batch=6).warm_up()]


def test_a_warm_up_that_runs_out_of_memory_lowers_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a size runs out of memory the largest batch is the previous size."""
    run, honest = runner(max_batch=32), Vim.forward_patches

    def cramped(self: Vim, patches: torch.Tensor) -> torch.Tensor:
        if len(patches) > 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return honest(self, patches)

    monkeypatch.setattr(Vim, "forward_patches", cramped)

    assert [1, 2, 4] == [size for size, _ in run.warm_up()]
    assert 4 == run.max_batch


def test_other_failures_of_the_warm_up_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other error ends the warm-up, because a broken model must not start."""

    def broken(self: Vim, patches: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr(Vim, "forward_patches", broken)
    with pytest.raises(RuntimeError, match="broken"):
        list(runner().warm_up())


def test_what_counts_as_out_of_memory() -> None:
    """Out of memory is recognised by type, or by the message of torch's CPU allocator."""
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
