"""How the device process describes its model."""

from __future__ import annotations

import pytest

from service.devices.worker import served_fingerprint
from service.settings import Settings
from tests.tiny import tiny_vim


@pytest.mark.parametrize("decode", ["exact", "pillow"])
def test_the_same_pixels_have_the_same_fingerprint(decode: str) -> None:
    """Decoding modes that give the same pixels have the same fingerprint, that of the model."""
    vim = tiny_vim()
    vim.fingerprint = "0123456789ab"

    assert vim.fingerprint == served_fingerprint(vim, Settings.model_validate({"decode": decode}))


def test_photographs_scaled_while_decoding_have_another() -> None:
    """VIM_DECODE=fast has another fingerprint, because its embeddings differ a little."""
    vim = tiny_vim()
    vim.fingerprint = "0123456789ab"
    found = served_fingerprint(vim, Settings(decode="fast"))

    assert vim.fingerprint != found
    assert 12 == len(found)
