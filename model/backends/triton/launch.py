"""Launches of the fused layer's kernels: grids and buffers. Tile sizes are those of `model.backends.triton.tiles`."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from model.backends.triton.kernels.project import add_norm, conv_project, gate, out_project_norm
from model.backends.triton.kernels.scan import scan_tokens
from model.backends.triton.tiles import LIBRARY, SCAN_TILE, Device, Tile, candidates, tabled, tile
from model.backends.triton.weights import STATES, LayerWeights

__all__ = ["Device", "Plan", "Tile", "candidates", "first_norm", "out_project", "plan", "project", "scan", "variants"]

SCAN_CHANNELS = 32  # one warp
SCAN_REGISTERS = 168  # of a thread: three programs share each scheduler's 16384
GATE_TOKENS, GATE_CHANNELS = 8, 256
NORM_ROWS = 4
LARGEST_PART = 256  # columns of one accumulator
WIDE_FROM = 1 << 31  # elements
COMPILED = isinstance(scan_tokens, JITFunction)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the kernels of a layer are launched: two tiles, and the most pieces of time."""

    project: Tile
    out_project: Tile
    pieces: int


def plan(xz: Tensor, width: int, device: Device) -> Plan:
    """Return the plan for in_proj's output (B, L, 2E): from the table, or else from the rules."""
    images, length, _ = xz.shape
    rows, dtype = images * length, xz.dtype
    found = tabled("scan", width, rows, dtype)
    pieces = chunks(length, programs(xz), device.processors) if found is None else triton.cdiv(length, found.tokens)
    return Plan(
        tile("project", width, rows, dtype, device),
        tile("out_project", width, rows, dtype, device),
        pieces,
    )


def variants(width: int, length: int, dtype: torch.dtype, device: Device) -> list[Plan]:
    """Return four plans that together run every kernel and every code path at one width: for a check on a device.

    Tiles of few and of many rows, out_proj by cuBLAS, and time in one piece, two, and as many as there can be.
    """
    most = triton.cdiv(length, SCAN_TILE)
    few, many = (
        (tile("project", width, rows, dtype, device), tile("out_project", width, rows, dtype, device))
        for rows in (1, 1 << 20)
    )
    return [Plan(*few, 1), Plan(*few, most), Plan(*many, min(2, most)), Plan(many[0], LIBRARY, 1)]


def parts(width: int) -> tuple[int, int]:
    """Split D into (count, power of two): 192 = 3 * 64, 384 = 3 * 128, 768 = 3 * 256."""
    part = min(width & -width, LARGEST_PART)
    return width // part, part


def chunks(tokens: int, whole: int, processors: int) -> int:
    """Return the number of chunks of the sequence, so that a long one fills a device that `whole` programs do not.

    In chunks every state is computed twice, so the programs that run at once must at least quadruple.
    """
    wanted = 8 * processors
    pieces = min(-(-tokens // SCAN_TILE), -(-wanted // max(1, whole)))
    return pieces if pieces >= 4 else 1


def programs(xz: Tensor) -> int:
    """Return the number of programs that scan in_proj's output (B, L, 2E) in one chunk."""
    return 2 * xz.shape[0] * int(triton.cdiv(xz.shape[2] // 2, SCAN_CHANNELS))


def scan_registers(capability: tuple[int, int], pieces: int) -> int | None:
    """Return the limit on the scan's registers, or None for the compiler's own.

    In pieces no scheduler has more than two programs, so that each may have 255. In one piece three fit at 168: code
    for an A100 takes a few more without the limit, that for an H100 does not.
    """
    if pieces > 1:
        return 255
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
    tokens = tokens.contiguous()
    residual, normed = torch.empty_like(tokens, dtype=torch.float32), torch.empty_like(tokens)
    _add_norm(tokens, residual, norm, normed, epsilon, first=True)
    return normed, residual


def project(xz: Tensor, weights: LayerWeights, shape: Tile | None = None) -> Tensor:
    """Convolution, SiLU and x_proj: xz (B, L, 2E) -> dbc (2, B, L, 32 + R'), float32.

    xz is in_proj's output. dbc has B and C interleaved, then the low-rank input of dt_proj, of both directions.
    `shape` is the kernel's tile, else it is looked up.
    """
    images, length, both = xz.shape
    rows, channels = images * length, both // 2
    shape = shape or tile("project", weights.width, rows, xz.dtype, Device.of(xz.device))
    dbc = xz.new_empty(2, images, length, 2 * STATES + weights.rank, dtype=torch.float32)
    conv_project[(triton.cdiv(rows, shape.tokens), 2)](
        xz,
        weights.x_proj,
        weights.params,
        dbc,
        rows,
        length,
        channels,
        RANK=weights.rank,
        TOKENS=shape.tokens,
        CHANNELS=shape.channels,
        WIDE=wide(xz, dbc),
        PTX=inline_assembly(xz.dtype),
        num_warps=shape.warps,
        num_stages=shape.stages,
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
            maxnreg=None if large and pieces == 1 else scan_registers(_capability(xz.device), pieces),
        )

    if pieces > 1:
        run(ends=True, carry=False)
    run(ends=False, carry=pieces > 1)
    return y


def out_project(
    y: Tensor,
    xz: Tensor,
    weights: LayerWeights,
    residual: Tensor,
    norm: Tensor,
    epsilon: float,
    device: Device,
    shape: Tile | None = None,
) -> Tensor:
    """Gate, out_proj, addition to `residual` in place, RMSNorm with the weight `norm`: (B, L, D) in y's dtype.

    `shape` is the kernel's tile, or LIBRARY for out_proj by cuBLAS; else it is looked up.
    """
    width, rows = residual.shape[-1], residual.numel() // residual.shape[-1]
    shape = shape or tile("out_project", width, rows, y.dtype, device)
    normed = torch.empty_like(residual, dtype=y.dtype)
    if shape == LIBRARY:
        projected = F.linear(_gated(y, xz), weights.out_proj)
        _add_norm(projected, residual, norm, normed, epsilon, first=False)
        return normed
    count, part = parts(width)
    out_project_norm[(triton.cdiv(rows, shape.tokens),)](
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
        TOKENS=shape.tokens,
        CHANNELS=shape.channels,
        WIDE=wide(xz, y),
        PTX=inline_assembly(y.dtype),
        num_warps=shape.warps,
        num_stages=shape.stages,
    )
    return normed


def _gated(y: Tensor, xz: Tensor) -> Tensor:
    _, images, length, channels = y.shape
    rows = images * length
    gated = y.new_empty(images, length, channels)
    gate[(triton.cdiv(rows, GATE_TOKENS), triton.cdiv(channels, GATE_CHANNELS))](
        y,
        xz,
        gated,
        rows,
        channels,
        TOKENS=GATE_TOKENS,
        CHANNELS=GATE_CHANNELS,
        WIDE=wide(xz, y),
        PTX=inline_assembly(y.dtype),
        num_warps=4,
    )
    return gated


def _add_norm(added: Tensor, residual: Tensor, norm: Tensor, normed: Tensor, epsilon: float, *, first: bool) -> None:
    width, rows = residual.shape[-1], residual.numel() // residual.shape[-1]
    add_norm[(triton.cdiv(rows, NORM_ROWS),)](
        added,
        residual,
        norm,
        normed,
        rows,
        width,
        epsilon,
        ROWS_EACH=NORM_ROWS,
        WIDTH=triton.next_power_of_2(width),
        FIRST=first,
        WIDE=wide(residual),
        num_warps=4,
    )
