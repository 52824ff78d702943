"""Chooses the build of torch. PyPI's build for Linux is for CUDA; PyTorch's index has a smaller one for CPUs."""

from __future__ import annotations

import os
import platform
import re
import shutil
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

AUTO = "auto"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SIZE_CPU = "192 MB to download, 760 MB on disk; about a minute"
_PROBE_S = 5
_DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1")
_OTHER = "TORCH_INDEX=URL takes another index"


@dataclass(frozen=True)
class Choice:
    """An extra package index, and the reason for it."""

    index: str
    why: str


def has_driver() -> bool:
    """Return whether this machine has an NVIDIA driver."""
    return any(Path(path).exists() for path in _DRIVER) or shutil.which("nvidia-smi") is not None


def choose(wanted: str, *, with_cuda: bool) -> Choice:
    """The index for torch: the one that is wanted ("": none); with `auto` PyTorch's CPU index where no GPU is used."""
    if wanted != AUTO:
        return Choice(wanted, f"From {wanted or 'the configured package index'}, as TORCH_INDEX says.")
    if with_cuda:
        return Choice("", "An NVIDIA driver was found, or CUDA was requested: the CUDA build, several GB to download.")
    if platform.system() != "Linux":
        return Choice("", f"The build for this system: {SIZE_CPU}.")
    if failure := unreachable(CPU_INDEX):
        return Choice(
            "",
            f"No NVIDIA driver was found, but {CPU_INDEX} with the CPU build cannot be reached ({failure}). The "
            f"configured package index is used; on PyPI this is the CUDA build, several GB. {_OTHER}.",
        )
    return Choice(CPU_INDEX, f"No NVIDIA driver was found: the CPU build from {CPU_INDEX}, {SIZE_CPU}. {_OTHER}.")


def unreachable(index: str) -> str:
    """Return why the index cannot be reached; empty if it can. pip itself would retry for minutes."""
    context = ssl.create_default_context()
    if authorities := os.environ.get("PIP_CERT"):
        context.load_verify_locations(authorities)
    request = urllib.request.Request(f"{index}/torch/", method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_PROBE_S, context=context).close()
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except OSError as error:
        return str(error)
    return ""


def pinned(constraints: Path) -> str:
    """The version of torch in the file of constraints."""
    found = re.search(r"^torch==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]
