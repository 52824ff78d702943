"""Build kernels for GPUs that are not present: record the launches on meta tensors, then compile them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import triton
from triton._C.libtriton import native_specialize_impl as specialized
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPTIONS = ("num_warps", "num_stages", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel and its arguments by name."""

    kernel: JITFunction[Any]
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return str(self.kernel.__name__)

    def compiled(self, capability: int) -> Built:
        """Compile for compute capability 80 (A100), 90 (H100, H200), ..."""
        names, kinds = self.kernel.arg_names, self.kinds()
        source = ASTSource(
            fn=self.kernel,
            signature={name: kind for name, (kind, _) in zip(names, kinds, strict=True)},
            constexprs={(i,): value for i, (kind, value) in enumerate(kinds) if kind == "constexpr"},
            attrs={
                (i,): CUDABackend.parse_attr(key) for i, (kind, key) in enumerate(kinds) if key and kind != "constexpr"
            },
        )
        options = {name: value for name, value in self.arguments.items() if name in OPTIONS and value is not None}
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        return Built.read(kernel.asm["cubin"], kernel.asm["ptx"], kernel.metadata.shared)

    def kinds(self) -> list[tuple[str, Any]]:
        """Return Triton's own key of every argument: its type, and what the code is compiled for."""
        return [
            ("constexpr", self.arguments[p.name])
            if p.is_constexpr
            else specialized(CUDABackend, self.arguments[p.name], False, not p.do_not_specialize, True)
            for p in self.kernel.params
        ]

    def key(self) -> tuple[Any, ...]:
        """What Triton compiles this launch for: launches of equal keys share their code."""
        return self.name, *self.kinds(), *(self.arguments.get(name) for name in OPTIONS)


@dataclass(frozen=True)
class Built:
    """The assembler's figures of a kernel. Registers that do not fit are spilled to the stack."""

    registers: int
    stack: int
    shared: int
    ptx: str
    cubin: bytes

    @property
    def assembly(self) -> str:
        """The machine code as text; computing it takes seconds."""
        return disassembly(self.cubin)

    @staticmethod
    def read(cubin: bytes, ptx: str, shared: int) -> Built:
        """Read the figures with the tools of triton's wheel."""
        usage = _tool(cubin, "cuobjdump", "-res-usage")
        numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", usage)}
        return Built(numbers["REG"], numbers["STACK"], shared, ptx, cubin)


def disassembly(cubin: bytes, *options: str) -> str:
    """Return the machine code as text; `-hex` adds the bits of each instruction."""
    return _tool(cubin, "nvdisasm", "-c", *options)


def _tool(cubin: bytes, name: str, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([BIN / name, *options, file.name], capture_output=True, text=True, check=True).stdout


def innermost_loop(assembly: str) -> list[str]:
    """Return the instructions of the shortest loop, from a label to the branch back to it."""
    lines = assembly.splitlines()
    labels = {match[1]: i for i, line in enumerate(lines) if (match := re.match(r"\s*(\.L_\w+):", line))}
    branches = [(i, match[1]) for i, line in enumerate(lines) if (match := re.search(r"BRA.*`\((\.L_\w+)\)", line))]
    loops = [lines[labels[to] + 1 : i + 1] for i, to in branches if labels.get(to, i) < i - 1]
    return [line for line in min(loops, key=len) if re.search(r"/\*[0-9a-f]+\*/", line)]


@contextmanager
def recorded(module: ModuleType) -> Iterator[list[Launch]]:
    """Record the module's launches instead of running them."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: JITFunction[Any]) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *values, **named: launches.append(
                Launch(self.kernel, dict(zip(self.kernel.arg_names, values, strict=False)) | named)
            )

    with pytest.MonkeyPatch.context() as patch:
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                patch.setattr(module, name, Recorder(value))
        yield launches
