"""CPU levels: machine code that is compiled ahead of time, and the choice of it for this CPU.

`model.commands.precompile` writes such code below MACHINE_CODE, one directory for each level; the container images have
it. A process that finds the directory uses the best level that its CPU supports, and compiles what is missing for
that level too. Without the directory, or with NUMBA_CPU_NAME or NUMBA_CPU_FEATURES set, numba compiles for this CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import llvmlite.binding as llvm
from numba import config

MACHINE_CODE = Path(__file__).parents[1] / "machine_code"


@dataclass(frozen=True, slots=True)
class Level:
    """A set of instructions that many CPUs have, by LLVM's names."""

    name: str
    cpu: str
    features: tuple[str, ...]

    @property
    def flattened(self) -> str:
        """The features as numba and LLVM read them."""
        return ",".join(f"+{feature}" for feature in self.features)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make numba compile for this level."""
        return {"NUMBA_CPU_NAME": self.cpu, "NUMBA_CPU_FEATURES": self.flattened}


_V2 = ("cmov", "cx16", "cx8", "fxsr", "mmx", "popcnt", "sahf", "sse", "sse2", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
# The levels of the x86-64 psABI; v4 also with the byte products that the resize uses (Ice Lake, Zen 4). Best first.
LEVELS = (
    Level("x86-64-v4-vnni", "x86-64-v4", (*_V4, "avx512vnni")),
    Level("x86-64-v4", "x86-64-v4", _V4),
    Level("x86-64-v3", "x86-64-v3", _V3),
)


def best(directory: Path, host: frozenset[str]) -> Level | None:
    """Return the best level that has code in the directory and that a CPU with these features supports."""
    return next((one for one in LEVELS if host.issuperset(one.features) and (directory / one.name).is_dir()), None)


def host_features() -> frozenset[str]:
    """Return the features of this CPU that the operating system allows."""
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def _choose() -> Path | None:
    """Let numba compile for the best level, and return the directory of its code."""
    chosen = config.CPU_NAME is not None or config.CPU_FEATURES is not None  # type: ignore[attr-defined]
    if chosen or (level := best(MACHINE_CODE, host_features())) is None:
        return None
    config.CPU_NAME, config.CPU_FEATURES = level.cpu, level.flattened  # type: ignore[attr-defined]
    return MACHINE_CODE / level.name


SHIPPED = _choose()  # before `model.jit.simd` selects instructions
