"""Fashion-MNIST as additional training data."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

from training.data import Pixels
from training.fashion_mnist import NAMES, FashionMnist

LABELS = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")


def _write(path: Path, values: Pixels) -> None:
    head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def test_garments_get_our_names_and_bags_none(tmp_path: Path) -> None:
    """All classes except the bag are drawn, at the requested size, and equally for the same seed."""
    _write(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(10, dtype=np.uint8))
    _write(tmp_path / "train-images-idx3-ubyte.gz", np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8))
    grey = FashionMnist(tmp_path, LABELS)

    images, classes = grey.batch(200, 40, torch.Generator().manual_seed(1))
    again, _ = grey.batch(200, 40, torch.Generator().manual_seed(1))

    assert images.shape == (200, 3, 40, 40)
    assert {LABELS[int(c)] for c in classes} == set(NAMES.values())
    assert torch.equal(images, again)
