"""What the client accepts as an image, and what it needs for that."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import vim_client.client
from vim_client.images import encoded


@pytest.mark.parametrize("image", [3, np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_image_is_refused(image: object) -> None:
    """`encoded` raises TypeError for a number and for arrays of another shape or type."""
    with pytest.raises(TypeError, match="image|pixels"):
        encoded(image)


def test_pixels_without_pillow_are_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow, numpy pixels raise ImportError with the command that installs it."""
    monkeypatch.setitem(sys.modules, "PIL.Image", None)

    with pytest.raises(ImportError, match="pip install pillow"):
        encoded(np.zeros((4, 4, 3), np.uint8))


def test_importing_the_client_loads_neither_the_server_nor_optional_packages() -> None:
    """`import vim_client` loads httpx and numpy, but not Pillow, tqdm, `service` or `model`."""
    folder = vim_client.client.__file__.rpartition("/vim_client/")[0]
    code = f"import sys; sys.path.insert(0, {folder!r}); import vim_client; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(shown.stdout.split())

    assert {"httpx", "numpy"} <= loaded
    assert set() == loaded & {"PIL", "tqdm", "service", "model"}


def test_every_public_name_is_importable() -> None:
    """Each name in `vim_client.__all__` exists."""
    assert [] == [name for name in vim_client.__all__ if not hasattr(vim_client, name)]
