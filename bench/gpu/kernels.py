"""Each scan and convolution alone, compared with two limits of the chip: memory traffic and exponentials."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.gpu.cases import Plan
from bench.gpu.record import Entry, Record
from bench.gpu.timing import Clock
from model.backends import mamba_ssm
from model.config import VimConfig
from model.scan import choose

# Exponentials per clock and multiprocessor (MUFU), sm_80 to sm_90.
EXP_PER_CLOCK = 16
COPY_BYTES = 1 << 30


def run(plan: Plan, record: Record, clock: Clock) -> None:
    """Time every backend at every configuration, for the smallest and a large batch, in float16."""
    if not record.has("kernels", "copy"):
        record.put("kernels", "copy", _copy(plan, clock))
    bytes_per_s = record.data["kernels"]["copy"]["bytes_per_s"]
    for name, config in plan.configs.items():
        for images in (1, 8 if config.seq_len > 2000 else plan.batches[-2]):
            for title, work, moved, exps in _kernels(plan, config, images):
                full = f"{title}, {name}, batch {images}"
                if record.has("kernels", full):
                    continue
                record.check_time()
                entry = clock.measure(work)
                limits = {"bytes_ms": round(1000 * moved / bytes_per_s, 4), "exp_ms": _exp_ms(plan, exps)}
                record.put("kernels", full, entry | limits)


def _kernels(plan: Plan, config: VimConfig, images: int) -> list[tuple[str, Callable[[], object], int, int]]:
    """Return title, work, bytes that it must move, and exponentials that it must compute."""
    inputs = _inputs(plan, config, images)
    u, _, A, _, _, _, z, _ = inputs
    scan_bytes = sum(x.nbytes for x in inputs) + z.nbytes
    x, weight, bias = z, torch.randn(2, config.d_inner, 4, device=plan.device), torch.randn(2, config.d_inner)
    weight, bias = weight.to(u.dtype), bias.to(plan.device, u.dtype)
    found: list[tuple[str, Callable[[], object], int, int]] = []
    for name in plan.scans:
        choice = choose(name, plan.device)
        found.append((f"scan {name}", partial(choice.fn, *inputs), scan_bytes, u.numel() * A.shape[2]))
        found.append((f"convolution {name}", partial(choice.conv, x, weight, bias), 3 * x.nbytes, u.numel()))
    if "mamba_ssm" in plan.scans:
        found.append(("scan mamba_ssm, not padded", lambda: _unpadded(inputs), scan_bytes, u.numel() * A.shape[2]))
    return found


def _unpadded(inputs: list[Tensor]) -> Tensor:
    """Scan at the original length, to measure the effect of padding."""
    limit, mamba_ssm.PAD_AT_MOST = mamba_ssm.PAD_AT_MOST, 1.0
    try:
        return mamba_ssm.scan(*inputs)
    finally:
        mamba_ssm.PAD_AT_MOST = limit


def _inputs(plan: Plan, config: VimConfig, images: int) -> list[Tensor]:
    """Random scan inputs of both directions in float16."""
    generator = torch.Generator(plan.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=plan.device)

    per_token, E, N = (2, images, config.seq_len), config.d_inner, config.d_state
    u, delta, B, C = (normal(*per_token, width).half() for width in (E, E, N, N))
    return [u, delta, -torch.exp(normal(2, E, N)), B, C, normal(2, E), normal(*per_token[1:], E).half(), normal(2, E)]


def _copy(plan: Plan, clock: Clock) -> Entry:
    """Measure a copy, counting reads and writes: the limit of memory traffic."""
    size = 1 << 20 if plan.dry_run else COPY_BYTES
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    entry = clock.measure(lambda: target.copy_(source))
    return entry | {"bytes_per_s": round(2 * size / (entry["ms"] / 1000))}


def _exp_ms(plan: Plan, exps: int) -> float | None:
    """Return milliseconds at the highest clock that the driver reports; None without a driver."""
    if plan.device.type != "cuda":
        return None
    asked = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    megahertz = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    if not megahertz or not megahertz[0].isdigit():
        return None
    per_ms = EXP_PER_CLOCK * torch.cuda.get_device_properties(plan.device).multi_processor_count
    return round(exps / (per_ms * 1000 * int(megahertz[0])), 4)
