"""Launches of the fused layer's kernels: grids, tile sizes, buffers. The sizes have not been tuned by measurement."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from model.backends.triton.kernels.project import conv_project, out_project_norm, widen_norm
from model.backends.triton.kernels.scan import carry_states, scan_tokens
from model.backends.triton.weights import STATES, LayerWeights

SCAN_TILE, SCAN_CHANNELS = 16, 32  # one warp
SCAN_REGISTERS = 168  # of a thread: three programs share each scheduler's 16384
LARGEST_PART = 256  # columns of one accumulator
WIDE_FROM = 1 << 31  # elements
MANY_ROWS = 4096
COMPILED = isinstance(scan_tokens, JITFunction)
SHARED_SLACK = 24 << 10  # bytes of shared memory beside the tiles of the pipeline


@dataclass(frozen=True, slots=True)
class Device:
    """What tile sizes depend on: the number of processors (SMs), and the bytes of shared memory of one program."""

    processors: int
    shared: int

    @staticmethod
    def of(device: torch.device) -> Device:
        """Query the driver; on a CPU, where only the interpreter runs, return an H100's values."""
        if device.type != "cuda":
            return Device(132, 232448)
        found = torch.cuda.get_device_properties(device)
        # torch's stubs do not have this name; every device has at least 48 KiB.
        shared = getattr(found, "shared_memory_per_block_optin", 48 << 10)
        return Device(found.multi_processor_count, shared)


@dataclass(frozen=True, slots=True)
class Tile:
    """The tokens and channels of a matrix kernel's tile, its warps, and its pipeline stages."""

    tokens: int
    channels: int
    warps: int
    stages: int = 3


def project_tile(rows: int, dtype: torch.dtype) -> Tile:
    """Return the tile of `project` for `rows` rows: large for many rows, small where the device would idle."""
    if dtype == torch.float32:  # a mode for correctness: no matrix units
        return Tile(16, 32, 4)
    return Tile(16, 64, 4, 4) if rows < MANY_ROWS else Tile(64, 32, 4, 4)


def out_tile(rows: int, width: int, dtype: torch.dtype, device: Device) -> Tile:
    """Return the tile of `out_project` for `rows` rows of `width` columns, which one program holds in registers."""
    few = rows < MANY_ROWS or dtype == torch.float32
    tokens = 16 if few else 64 if width <= 384 else 32
    channels = 64 if few and width <= 192 and dtype != torch.float32 else 32
    ahead = channels * (width + 3 * tokens) * dtype.itemsize
    stages = 3 if 2 * ahead + SHARED_SLACK <= device.shared else 2
    return Tile(tokens, channels, 4 if width <= (384 if few else 192) else 8, stages)


def parts(width: int) -> tuple[int, int]:
    """Split D into (count, power of two): 192 = 3 * 64, 384 = 3 * 128, 768 = 3 * 256."""
    part = min(width & -width, LARGEST_PART)
    return width // part, part


def chunks(tokens: int, whole: int, processors: int) -> int:
    """Return the number of chunks of the sequence, so that a long one fills a device that `whole` programs do not.

    In chunks every state is computed twice, so the programs that run at once must at least quadruple.
    """
    wanted = 8 * processors
    pieces = min(tokens // 64, -(-wanted // max(1, whole)))
    return pieces if pieces >= 4 else 1


def programs(xz: Tensor) -> int:
    """Return the number of programs that scan in_proj's output (B, L, 2E) in one chunk."""
    return 2 * xz.shape[0] * int(triton.cdiv(xz.shape[2] // 2, SCAN_CHANNELS))


def scan_registers(capability: tuple[int, int]) -> int | None:
    """Return the limit on the scan's registers: for Ampere's code, which takes a few too many; none on an H100."""
    return SCAN_REGISTERS if capability < (9, 0) else None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def wide(*tensors: Tensor, copies: int = 1) -> bool:
    """Return whether an offset exceeds 31 bits in one of the tensors, or in `copies` of it one after the other."""
    return any(copies * tensor.numel() >= WIDE_FROM for tensor in tensors)


def inline_assembly(dtype: torch.dtype) -> bool:
    """Return whether kernels use PTX instructions: not in float32, and not in Triton's interpreter."""
    return dtype != torch.float32 and COMPILED


def first_norm(tokens: Tensor, norm: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, D) -> (their RMSNorm in their dtype, the residual in float32)."""
    width = tokens.shape[-1]
    tokens = tokens.contiguous()
    residual, normed = torch.empty_like(tokens, dtype=torch.float32), torch.empty_like(tokens)
    rows = tokens.numel() // width
    widen_norm[(triton.cdiv(rows, 4),)](
        tokens,
        residual,
        norm,
        normed,
        rows,
        width,
        epsilon,
        ROWS_EACH=4,
        WIDTH=triton.next_power_of_2(width),
        WIDE=wide(tokens),
        num_warps=4,
    )
    return normed, residual


def project(xz: Tensor, weights: LayerWeights) -> Tensor:
    """Convolution, SiLU and x_proj: xz (B, L, 2E) -> dbc (2, B, L, 32 + R'), float32.

    xz is in_proj's output. dbc has B and C interleaved, then the low-rank input of dt_proj, of both directions.
    """
    images, length, both = xz.shape
    rows, channels = images * length, both // 2
    tile = project_tile(rows, xz.dtype)
    dbc = xz.new_empty(2, images, length, 2 * STATES + weights.rank, dtype=torch.float32)
    conv_project[(triton.cdiv(rows, tile.tokens), 2)](
        xz,
        weights.x_proj,
        weights.params,
        dbc,
        rows,
        length,
        channels,
        RANK=weights.rank,
        TOKENS=tile.tokens,
        CHANNELS=tile.channels,
        WIDE=wide(xz, dbc),
        PTX=inline_assembly(xz.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return dbc


def scan(xz: Tensor, dbc: Tensor, weights: LayerWeights, pieces: int) -> Tensor:
    """Both directions' <h, C> + D u (2, B, L, E), before the gate; `pieces` is the most chunks of the sequence."""
    images, length, both = xz.shape
    channels = both // 2
    chunk = SCAN_TILE * triton.cdiv(triton.cdiv(length, pieces), SCAN_TILE)
    pieces = triton.cdiv(length, chunk)
    started = programs(xz) * pieces
    y = xz.new_empty(2, images, length, channels)
    scratch = dbc.new_empty(started, SCAN_TILE, SCAN_CHANNELS)
    states = dbc.new_empty(2, images, pieces, STATES, channels) if pieces > 1 else scratch
    sums = dbc.new_empty(2, images, pieces, channels) if pieces > 1 else scratch

    large = wide(xz, dbc, copies=2)  # both directions count the rows of x on

    def run(*, ends: bool, carry: bool) -> None:
        scan_tokens[(started,)](
            xz,
            dbc,
            dbc.view(torch.int64),
            weights.dt_proj,
            weights.params,
            y,
            scratch,
            states,
            sums,
            images,
            length,
            channels,
            chunk,
            pieces,
            RANK=weights.rank,
            TILE=SCAN_TILE,
            CHANNELS=SCAN_CHANNELS,
            ENDS=ends,
            CARRY=carry,
            WIDE=large,
            PTX=inline_assembly(xz.dtype),
            num_warps=1,
            maxnreg=None if large else scan_registers(_capability(xz.device)),
        )

    if pieces > 1:
        run(ends=True, carry=False)
        carry_states[(programs(xz),)](
            weights.params, states, sums, images, channels, pieces, CHANNELS=SCAN_CHANNELS, num_warps=1
        )
    run(ends=False, carry=pieces > 1)
    return y


def out_project(
    y: Tensor, xz: Tensor, weights: LayerWeights, residual: Tensor, norm: Tensor, epsilon: float, device: Device
) -> Tensor:
    """Gate, out_proj, addition to `residual` in place, RMSNorm with the weight `norm`: (B, L, D) in y's dtype."""
    width, rows = residual.shape[-1], residual.numel() // residual.shape[-1]
    count, part = parts(width)
    tile = out_tile(rows, width, y.dtype, device)
    normed = torch.empty_like(residual, dtype=y.dtype)
    out_project_norm[(triton.cdiv(rows, tile.tokens),)](
        y,
        xz,
        weights.out_proj,
        residual,
        norm,
        normed,
        rows,
        y.shape[-1],
        epsilon,
        PARTS=count,
        PART=part,
        TOKENS=tile.tokens,
        CHANNELS=tile.channels,
        WIDE=wide(xz, y),
        PTX=inline_assembly(y.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return normed
