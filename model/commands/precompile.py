"""`python -m model.commands.precompile DIR`: compile the CPU kernels ahead of time, for every level of CPUs.

The images are built with it. `model.jit.levels` defines the levels and finds the code when a process starts.
Instructions are selected when kernels are imported, so each level is compiled by a process of its own. No code is run:
the machine need not support the level.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.config import VimConfig
from model.errors import ModelError
from model.jit.kept_code import SUFFIX
from model.jit.levels import LEVELS, Level
from model.loading.released import RELEASED
from model.shipped import shipped

_MODULE = "model.commands.precompile"
MACHINES = ("x86_64", "AMD64")


def precompile(directory: Path) -> dict[str, int]:
    """Write one folder per level; return the number of kernels in each. On other processors than x86: none.

    Raises ModelError with the compiler's message for a level that cannot be compiled.
    """
    directory.mkdir(parents=True, exist_ok=True)
    levels = LEVELS if platform.machine() in MACHINES else ()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(
            zip([level.name for level in levels], pool.map(lambda one: _run(directory, one), levels), strict=True)
        )


def _run(directory: Path, level: Level) -> int:
    place = directory.absolute() / level.name
    place.mkdir(parents=True, exist_ok=True)
    environ = os.environ | level.environment | {"NUMBA_CACHE_DIR": str(place)}
    command = [sys.executable, "-c", f"from {_MODULE} import compile_all; compile_all()"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    count = len([*place.rglob(f"*{SUFFIX}")])
    if done.returncode != 0 or count == 0:
        raise ModelError(f"the kernels cannot be compiled for {level.name}:\n{done.stderr[-2000:]}")
    return count


def compile_all() -> None:
    """Compile every kernel that the demo model and the released models use, for the CPU that numba is told."""
    from model.backends.cpu import kernels, program
    from model.preprocessing.compiled.cmyk import CmykToRgb
    from model.preprocessing.compiled.resize import Resize

    for make in (
        CmykToRgb, Resize, kernels.trial_kernel, kernels.norm_kernel, program.product_kernel,
        program.shared_program_kernel, program.separate_programs_kernel,
    ):  # fmt: skip
        make()
    for config in _configs():
        kernels.conv_kernel(config.d_conv)
        for rank in (0, config.dt_rank):  # without and with the projection of the step sizes
            kernels.scan_kernel(config.d_state, rank)


def _configs() -> Iterator[VimConfig]:
    yield VimConfig.read(shipped("demo") / "config.json")
    yield from (VimConfig(embed_dim=released.embed_dim) for released in RELEASED.values())


def main(directory: str) -> int:
    """Print the number of kernels of each level; returns the exit status."""
    try:
        counts = precompile(Path(directory))
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    print(*(f"{name}  {count} kernels" for name, count in counts.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
