"""Facts about the machine: its driver, page-locking of a memory file, a small graph, the speed of a copy."""

from __future__ import annotations

import subprocess

import torch

from bench.gpu.cases import Plan, slots
from bench.gpu.entry import FACTS, Entry, SkippedError, Values

COPY_BYTES = 1 << 30
PRODUCT = 8192
QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit"


def entries(plan: Plan) -> list[Entry]:
    """Return the facts."""
    return [
        Entry(FACTS, "nvidia-smi", smi),
        Entry(FACTS, "pixels in a memory file", lambda: _page_lock(plan), 2),
        Entry(FACTS, "graph", lambda: _graph(plan), 2),
        Entry(FACTS, "copy", lambda: _copy(plan), 2),
        Entry(FACTS, "matrix product in float16", lambda: _product(plan), 2),
    ]


def smi() -> Values:
    """Ask the driver for its facts. Raises SkippedError where there is none."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except FileNotFoundError:
        raise SkippedError("nvidia-smi is not on the path") from None
    return dict(zip(QUERY.split(","), map(str.strip, asked.stdout.splitlines()[0].split(",")), strict=False))


def _page_lock(plan: Plan) -> Values:
    """Whether the driver page-locks an anonymous memory file; where not, pixels are gathered first."""
    reason = plan.accelerator().page_lock(slots(4, 224))
    return {"page_locked": reason is None, "why_not": reason}


def _graph(plan: Plan) -> Values:
    accelerator = plan.accelerator()
    stream = accelerator.stream()
    x, y = torch.ones(64, device=plan.device), torch.zeros(64, device=plan.device)

    def work() -> None:
        torch.add(x, x, out=y)

    accelerator.run(stream, work)
    accelerator.wait_and_free()
    graph = accelerator.capture(stream, work)
    x.fill_(3)
    accelerator.wait_and_free()
    accelerator.replay(stream, graph)
    accelerator.wait_and_free()
    return {"ok": bool((y == 6).all())}


def _copy(plan: Plan) -> Values:
    """Measure a copy, counting reads and writes: the limit of memory traffic."""
    size = 1 << 20 if plan.dry_run else COPY_BYTES
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    values = plan.clock().measure(lambda: target.copy_(source))
    return values | {"bytes_per_s": round(2 * size / (values["ms"] / 1000))}


def _product(plan: Plan) -> Values:
    size = 64 if plan.dry_run else PRODUCT
    a, b = (torch.randn(size, size, device=plan.device, dtype=torch.float16) for _ in range(2))
    values = plan.clock().measure(lambda: a @ b)
    return values | {"flops": round(2 * size**3 / (values["ms"] / 1000))}
