"""Finds the data that is part of this project: the demo model and the sample pictures.

A checkout has them beside the packages. The build copies them into `model/data/` (`setup.py`).
"""

from __future__ import annotations

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]
_INSTALLED = Path(__file__).resolve().with_name("data")
_FOLDERS = {"demo": "models/demo", "samples": "examples/images", "photos": "examples/photos"}


def shipped(name: str) -> Path:
    """The folder of the `demo` model, of the `samples` for programs, or of the `photos` of the demo page.

    That of the checkout, if there is no installed copy.
    """
    installed = _INSTALLED / name
    return installed if installed.is_dir() else _CHECKOUT / _FOLDERS[name]
