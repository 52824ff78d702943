"""What the client takes for an image."""

from __future__ import annotations

import numpy as np
import pytest
from vim_client.images import encoded


@pytest.mark.parametrize("image", [3, np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_image_is_refused_here(image: object) -> None:
    """Before anything is sent."""
    with pytest.raises(TypeError, match="image|pixels"):
        encoded(image)
