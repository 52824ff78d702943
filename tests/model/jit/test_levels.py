"""Machine code of CPU levels: which level a CPU gets, and that its code is used only if it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model.jit import levels
from tests.model.backends.cpu.test_scan import run_python

V4_VNNI, V4, V3 = levels.LEVELS
HASWELL = frozenset(V3.features) | {"64bit", "invpcid"}
NEEDS_V3 = pytest.mark.skipif(not levels.host_features().issuperset(V3.features), reason="this CPU has no AVX2")

# Runs two kernels with the code of `model.jit.levels` in another place; prints how many were not compiled.
_RUN = """
import logging
from pathlib import Path
from model.jit import levels
levels.MACHINE_CODE = Path({place!r})
levels.SHIPPED = levels._choose()
logging.basicConfig(format="%(message)s")
import numpy as np
from model.preprocessing.compiled.cmyk import CmykToRgb
convert = CmykToRgb(Path({cache!r}))
memory = np.arange(640, dtype=np.uint8)
convert(memory)
print(levels.SHIPPED and levels.SHIPPED.name, convert._code.cache_hits, memory[:480].tobytes().hex())
"""


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One kernel compiled for AVX2, as an image has it."""
    place = tmp_path_factory.mktemp("machine_code")
    run_python(
        "from model.preprocessing.compiled.cmyk import CmykToRgb; CmykToRgb()",
        **V3.environment,
        NUMBA_CACHE_DIR=str(place / V3.name),
    )
    return place


def run(place: Path, cache: Path) -> list[str]:
    """Run the kernel in a new process; return the words of its line, and the lines of the log."""
    found, *said = run_python(_RUN.format(place=str(place), cache=str(cache))).splitlines()
    return [*found.split(), *said]


def files(place: Path) -> list[Path]:
    """All kernels in a directory."""
    return sorted(place.rglob("*.code"))


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (frozenset(V4_VNNI.features) | {"avx512fp16"}, V4_VNNI),
        (frozenset(V4.features), V4),
        (frozenset(V4.features) - {"avx512vl"}, V3),
        (HASWELL, V3),
        (HASWELL - {"fma"}, None),
        (frozenset({"neon", "fp-armv8"}), None),
    ],
)
def test_a_cpu_gets_the_best_level_that_it_supports(
    features: frozenset[str], expected: levels.Level | None, tmp_path: Path
) -> None:
    """Every instruction of the level must be there."""
    for level in levels.LEVELS:
        (tmp_path / level.name).mkdir()

    assert expected == levels.best(tmp_path, features)


def test_a_level_without_code_is_not_chosen(tmp_path: Path) -> None:
    """Without code of a better level the CPU gets that of a lower one, or none."""
    assert levels.best(tmp_path, frozenset(V4_VNNI.features)) is None
    (tmp_path / V3.name).mkdir()
    assert V3 == levels.best(tmp_path, frozenset(V4_VNNI.features))


@NEEDS_V3
def test_shipped_code_is_used_and_computes_the_same(machine_code: Path, tmp_path: Path) -> None:
    """A first start compiles nothing and writes nothing to the cache; code for exactly this CPU gives the same."""
    name, hits, pixels = run(machine_code, tmp_path / "cache")
    _, compiled, native = run(tmp_path / "none", tmp_path / "native")

    assert (V3.name, "1", "0") == (name, hits, compiled)
    assert native == pixels
    assert [] == files(tmp_path / "cache")


@NEEDS_V3
def test_damaged_shipped_code_is_compiled_again(machine_code: Path, tmp_path: Path) -> None:
    """One flipped bit: one warning, the same numbers; the code is kept in the cache and the file stays."""
    shutil.copytree(machine_code, tmp_path / "code")
    (path,) = files(tmp_path / "code")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    _, _, right = run(machine_code, tmp_path / "unused")
    name, hits, pixels, *said = run(tmp_path / "code", tmp_path / "cache")

    assert (V3.name, "0", right) == (name, hits, pixels)
    assert f"{path} is damaged: it is not used" in " ".join(said)
    assert bytes(content) == path.read_bytes()
    assert 1 == len(files(tmp_path / "cache"))
    assert "1" == run(tmp_path / "code", tmp_path / "cache")[1]
