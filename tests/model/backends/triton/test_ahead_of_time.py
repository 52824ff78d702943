"""Every kernel of the released models compiles for A100 and H100 within the available registers, without spills."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from model.config import VimConfig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it has wheels for Linux only)"
)

# Most registers of a thread. One program of the scan is one warp: at 168 registers 12 programs share a processor.
REGISTERS = {
    "scan_tokens": 168,
    "conv_project": 168,
    "out_project_norm": 255,
    "gate": 64,
    "add_norm": 128,
}
WIDE_REGISTERS = 12  # more with 64-bit offsets (2^30 elements): two programs then share a scheduler, with up to 255
SHARED = {80: 166912, 90: 232448}  # bytes that one program may have
WIDTHS = {"tiny": 192, "small": 384, "base": 768}


def launches(width: int, dtype: torch.dtype, images: int, length: int, pieces: int = 1) -> Iterator[object]:
    """Yield the launches of a layer of this width for (B, L, D) tokens, on tensors without memory."""
    from model.backends.triton import launch
    from model.backends.triton.weights import LayerWeights, padded_rank
    from tests.model.backends.triton.ahead import recorded

    shape = VimConfig(embed_dim=width)
    inner, rank = shape.d_inner, padded_rank(shape.dt_rank)

    def meta(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(*sizes, dtype=dtype, device="meta")

    layer = LayerWeights(
        meta(2 * inner, width),
        meta(2, 32 + rank, inner),
        meta(2, inner, rank),
        meta(2, 23, inner, dtype=torch.float32),
        meta(width, inner),
    )
    norm, xz = meta(width, dtype=torch.float32), meta(images, length, 2 * inner)
    with recorded(launch) as written:
        _, residual = launch.first_norm(meta(images, length, width), norm, 1e-5)
        y = launch.scan(xz, launch.project(xz, layer), layer, pieces)
        launch.out_project(y, xz, layer, residual, norm, 1e-5, launch.Device(108, SHARED[80]))
    yield from written


def check(launch: object, capability: int, stack: int = 0) -> None:
    """Compile within the limits on registers and shared memory, with at most `stack` bytes of spills.

    In pieces of time two programs share a scheduler at most, so that each may have 255 registers.
    """
    from model.backends.triton.launch import scan_registers
    from tests.model.backends.triton.ahead import Launch

    assert isinstance(launch, Launch)
    name = launch.name
    if name == "scan_tokens" and not launch.arguments["WIDE"]:
        registers = scan_registers((capability // 10, 0), launch.arguments["chunks"])
        launch = Launch(launch.kernel, launch.arguments | {"maxnreg": registers})
    built = launch.compiled(capability)
    assert stack >= built.stack, name
    limit = 255 if launch.arguments.get("chunks", 1) > 1 else REGISTERS[name]
    assert limit + (WIDE_REGISTERS if launch.arguments.get("WIDE") else 0) >= built.registers, name
    assert SHARED[capability] >= built.shared, name


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("size", WIDTHS)
def test_kernels_of_the_released_models_build_without_spills(size: str, capability: int) -> None:
    """The kernels build without spills at 224 px in float16, for one image and for a batch of 64."""
    for images in (1, 64):
        for launch in launches(WIDTHS[size], torch.float16, images, 197):
            check(launch, capability)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("size", WIDTHS)
def test_the_scan_in_pieces_of_time_builds_without_spills(size: str, capability: int) -> None:
    """Both passes of one image's scan build without spills."""
    found = list(launches(WIDTHS[size], torch.float16, 1, 197, pieces=13))

    names = [launch.name for launch in found]  # type: ignore[attr-defined]
    assert ["add_norm", "conv_project", "scan_tokens", "scan_tokens", "out_project_norm"] == names
    for launch in found:
        check(launch, capability)


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_build_in_bfloat16(capability: int) -> None:
    """The same kernels build without spills in bfloat16."""
    for launch in launches(192, torch.bfloat16, 64, 197):
        check(launch, capability)


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_build_in_float32(capability: int) -> None:
    """In float32, which is for correctness only, a word or two may spill."""
    for launch in launches(192, torch.float32, 64, 197):
        check(launch, capability, stack=16)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("size", "images", "last"), [("base", 128, "gate"), ("small", 256, "out_project_norm")])
def test_kernels_build_with_64_bit_offsets(size: str, images: int, last: str, capability: int) -> None:
    """The kernels build at 1248 px in batches where in_proj's output has more than 2^31 elements."""
    written = [launch for launch in launches(WIDTHS[size], torch.float16, images, 6085) if launch.arguments["WIDE"]]  # type: ignore[attr-defined]

    assert {"conv_project", "scan_tokens", last} == {launch.name for launch in written}  # type: ignore[attr-defined]
    for launch in written:
        check(launch, capability)


def test_a_width_and_dtype_compile_once_for_all_batches() -> None:
    """Batches of 1 to 128 need eight: two tiles of each matrix kernel, the scan in one piece, and its two passes."""
    from model.backends.triton.launch import chunks

    keys: dict[object, str] = {}
    for images in (1, 8, 20, 64, 128):
        for found in launches(192, torch.float16, images, 197, chunks(197, 24 * images, 132)):
            keys[found.key()] = found.name  # type: ignore[attr-defined]

    assert {"add_norm": 1, "conv_project": 2, "scan_tokens": 3, "out_project_norm": 2} == Counter(keys.values())


def test_the_matrix_products_use_the_matrix_units() -> None:
    """Products use tensor cores on both GPUs, and on an H100 its wide instruction where a tile has 64 rows."""
    from tests.model.backends.triton.ahead import Launch

    found = {launch.name: launch for launch in launches(192, torch.float16, 64, 197) if isinstance(launch, Launch)}
    for name in ("conv_project", "out_project_norm"):
        assert "mma.sync" in found[name].compiled(80).ptx
        assert "wgmma.mma_async" in found[name].compiled(90).ptx
    assert "mma.sync" in found["scan_tokens"].compiled(90).ptx


def test_a_step_of_the_scan_is_as_short_as_it_was() -> None:
    """The loop over tokens has 18 results of the special function unit, at most 138 instructions, and no shuffle."""
    from tests.model.backends.triton.ahead import Launch, innermost_loop

    (launch,) = [found for found in launches(192, torch.float16, 64, 197) if found.name == "scan_tokens"]  # type: ignore[attr-defined]
    assert isinstance(launch, Launch)
    loop = innermost_loop(launch.compiled(90).assembly)

    assert 18 == sum("MUFU" in line for line in loop)
    assert 138 >= len(loop)
    assert not any("SHFL" in line for line in loop)
