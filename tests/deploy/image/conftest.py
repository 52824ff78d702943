"""The storage of the images, which `make test-image STORE=DIR` keeps for the next run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.image.engine import Engine, missing


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """buildah and podman with storage of their own; skips where images are not asked for or cannot be built."""
    if "TEST_IMAGE" not in os.environ:
        pytest.skip("builds an image: make test-image")
    if (lacking := missing()) is not None:
        pytest.skip(lacking)
    kept = os.environ.get("STORE")
    directory = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="vim-image-", dir="/var/tmp"))
    directory.mkdir(parents=True, exist_ok=True)
    engine = Engine(directory.resolve())
    yield engine
    if not kept:
        engine.close()
