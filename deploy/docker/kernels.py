"""Before and after building mamba-ssm and causal-conv1d: is everything there, and is the result what was asked for?

    python deploy/docker/kernels.py before     a CUDA torch, its nvcc, a C++ compiler, ninja; else says what to do
    python deploy/docker/kernels.py after      imports both extensions and compares their architectures

Builds nothing itself: `make install-cuda` and the Dockerfile do. Their own build ends in a NameError without nvcc.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

EXTENSIONS = ("selective_scan_cuda", "causal_conv1d_cuda")
NO_CUDA = (
    "the installed torch has no CUDA. Install the CUDA build (on Linux x86-64 PyPI's): "
    "`make clean install-cuda` without TORCH_INDEX and where no pip setting offers a CPU wheel"
)


def before(cuda_home: Path) -> list[str]:
    """What is missing for a build; empty when nothing is."""
    torch_cuda = _torch_cuda()
    if torch_cuda is None:
        return [NO_CUDA]
    missing = [_nvcc(cuda_home, torch_cuda)]
    if not (shutil.which("g++") or shutil.which("c++")):
        missing.append("no C++ compiler: install g++")
    if not importlib.util.find_spec("ninja") and not shutil.which("ninja"):
        missing.append("no ninja: without it torch ignores PYTORCH_NVCC and so the architectures asked for")
    return [what for what in missing if what]


def after(architectures: str) -> list[str]:
    """What is wrong with the installed extensions; empty when nothing is. Needs no GPU."""
    importlib.import_module("torch")  # first: it brings the libraries that they link against
    wrong = []
    for name in EXTENSIONS:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # an undefined symbol: built against another torch
            wrong.append(f"cannot import {name}: {error}")
            continue
        found = compiled_architectures(Path(str(module.__file__)))
        print(f"{name} imports; compiled for {', '.join(sorted(found)) or 'unknown architectures (no cuobjdump)'}")
        asked = {f"sm_{number.replace('.', '')}" for number in re.findall(r"[\d.]+[af]?", architectures)}
        if found and asked and found != asked:
            wrong.append(f"{name} is compiled for {sorted(found)}, not for {sorted(asked)}")
    return wrong


def _torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


def _nvcc(cuda_home: Path, torch_cuda: str) -> str | None:
    """None when nvcc is there and of torch's CUDA major version, else what to do."""
    nvcc = cuda_home / "bin" / "nvcc"
    get = f"install the CUDA {torch_cuda} toolkit and set CUDA_HOME to its directory"
    if not nvcc.exists():
        return f"no {nvcc}: {get}"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None or release[1] != torch_cuda.partition(".")[0]:
        return f"{nvcc} is of CUDA {release[0] if release else 'unknown'}, torch of CUDA {torch_cuda}: {get}"
    return None


def compiled_architectures(library: Path) -> set[str]:
    """The GPU architectures with machine code in a library; empty when nothing here can tell."""
    cuobjdump = _cuobjdump()
    if cuobjdump is None:
        return set()
    listed = subprocess.run([cuobjdump, "--list-elf", library], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"\bsm_\w+?(?=\.cubin|\b)", listed))


def _cuobjdump() -> str | None:
    """The toolkit's, or the one inside triton."""
    triton = importlib.util.find_spec("triton")
    inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else Path("/")
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "cuobjdump"
    return next((str(tool) for tool in (home, inside) if tool.is_file()), None) or shutil.which("cuobjdump")


def main(stage: str) -> int:
    """Run one check; returns the exit status."""
    if stage == "before":
        problems = before(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")))
    else:
        problems = after(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
