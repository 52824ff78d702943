"""Full-size files: a whole training checkpoint, loaded through the hub in less memory than its size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model import VimConfig, load
from model.loading.released import RELEASED
from tests.golden import SHARED, needs_shared
from tests.model.full_size import write
from tests.model.loading.fake_hub import serve

ROOT = Path(__file__).parents[2]
PEAK = """
import resource, sys
from model import load
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import torch, model.loading.load
before = peak()
vim = load("vim-tiny", cache_dir=sys.argv[1], device="cpu")
print(vim.fingerprint, 1024 * (peak() - before))
"""


@needs_shared
@pytest.mark.slow
def test_a_released_model_in_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A released model by name gives the golden logits, with a memory peak below the file's size."""
    path, cache, released = tmp_path / "vim_tiny.pth", tmp_path / "cache", RELEASED["vim-tiny"]
    entry = write("vim_tiny", path)
    with serve() as hub:
        hub.repos[released.repo] = {released.file: path}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        vim = load("vim-tiny", cache_dir=cache, device="cpu")

    arrays = np.load(SHARED / "golden" / "full" / "vim_tiny.npz")
    assert vim.config == VimConfig.from_reference(**entry["resolved_kwargs"])
    images = torch.from_numpy(golden_input())
    with torch.inference_mode():
        np.testing.assert_allclose(vim(images[:1]).numpy(), arrays["logits"][:1], rtol=0, atol=1e-4)
    fingerprint, grown = in_a_process(cache).split()
    assert fingerprint == vim.fingerprint
    assert int(grown) < path.stat().st_size


def golden_input() -> np.ndarray:
    """Return the images of the golden logits."""
    from tests.golden import make_weights

    images: np.ndarray = make_weights().make_input(100, 2, 224, 224)
    return images


def in_a_process(cache: Path) -> str:
    """Load the model in a separate process and return its fingerprint and memory growth."""
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(cache)], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout
