"""The C and C++ libraries inside the wheels that read untrusted bytes or compute: name, version, and the wheel.

    python -m tools.libraries

A scanner of Python packages does not see them. Compare them with the advisories of each project.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

# Codecs of Pillow as `PIL.features` names them -> the name of the library.
_PILLOW = {
    "avif": "libavif",
    "freetype2": "freetype",
    "jpg_2000": "openjpeg",
    "libjpeg_turbo": "libjpeg-turbo",
    "libtiff": "libtiff",
    "littlecms2": "lcms2",
    "webp": "libwebp",
    "zlib_ng": "zlib-ng",
}
_TURBO = re.compile(rb"libjpeg-turbo version (\d[\d.]+)")


class Library(NamedTuple):
    """A library inside a wheel."""

    name: str
    version: str
    wheel: str


def libraries() -> list[Library]:
    """The libraries of the wheels that are installed."""
    return sorted({*_pillow(), *_pi_heif(), *_simplejpeg(), *_llvm(), *_torch()})


def _pillow() -> Iterator[Library]:
    from PIL import features

    for feature, name in _PILLOW.items():
        if features.check(feature) and (version := features.version(feature)):
            yield Library(name, version, "pillow")


def _pi_heif() -> Iterator[Library]:
    try:
        import pi_heif
    except ImportError:
        return
    found = pi_heif.libheif_info()
    yield Library("libheif", found["libheif"], "pi-heif")
    if (decoder := found["decoders"].get("libde265")) and (version := re.search(r"\d[\d.]+$", decoder)):
        yield Library("libde265", version[0], "pi-heif")


def _simplejpeg() -> Iterator[Library]:
    for file in metadata.files("simplejpeg") or ():
        if file.suffix == ".so" and (found := _TURBO.search(Path(str(file.locate())).read_bytes())):
            yield Library("libjpeg-turbo", found[1].decode(), "simplejpeg")


def _llvm() -> Iterator[Library]:
    from llvmlite import binding

    yield Library("llvm", ".".join(map(str, binding.llvm_version_info)), "llvmlite")


def _torch() -> Iterator[Library]:
    import torch

    text = torch.__config__.show()
    for name, pattern in {"onednn": r"MKL-DNN v(\d[\d.]+)", "mkl": r"Math Kernel Library Version (\d[\d.]+)"}.items():
        if found := re.search(pattern, text):
            yield Library(name, found[1], "torch")
    if torch.version.cuda:
        yield Library("cuda", torch.version.cuda, "torch")


if __name__ == "__main__":
    for library in libraries():
        print(f"{library.name:16}{library.version:14}{library.wheel}")
