"""A model of how one scheduler of an H100 issues the scan's loop: cycles a token, from the code's control codes.

Every figure is a model figure; nothing here was measured. ptxas writes into each instruction how long the next one must
wait (stall), which of six barriers it sets when its result is there (write) or when its operands are read (read), and
which barriers it waits for. The model runs the warps of one scheduler through the loop: each cycle the next warp that
is ready issues one instruction. Assumptions, in cycles:

| | occupies its unit | result after |
| --- | --- | --- |
| special functions (MUFU): 4 lanes a cycle | 8 | 23 |
| loads and stores: 32 lanes a cycle, of four schedulers | 4 | 38 from L1, 270 from L2, 30 from shared memory |
| matrix product (HMMA) | 8 | 33 |
| FFMA, FMUL, FADD, IMAD | 1 | stall counts |
| other integer, logic, conversions | 2 | 15 where a barrier is set |
| constants and special registers | 2 | 30 |

The warps start 37 cycles apart. Operands are read after 15 cycles. The caches always hit at the stated level, branches
cost their stall counts alone, and register banks have no conflicts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.backends.triton.ahead import disassembly

L1, L2 = 38, 270
OCCUPIED = {"mufu": 8, "memory": 4, "matrix": 8, "fma": 1, "constant": 2, "other": 2}
LATENCY = {"mufu": 23, "matrix": 33, "fma": 15, "constant": 30, "other": 15}
SHARED_LATENCY, OPERANDS_READ, APART = 30, 15, 37
NO_BARRIER = 7
TILES = 6  # the simulated tiles of 16 tokens
UNITS = {
    "mufu": ("MUFU",),
    "memory": ("LDG", "STG", "LDS", "STS", "LD.", "ST."),
    "matrix": ("HMMA", "IMMA", "HGMMA"),
    "fma": ("FFMA", "FMUL", "FADD", "HADD2", "HFMA2", "HMUL2", "IMAD"),
    "constant": ("LDC", "ULDC", "S2R", "S2UR"),
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction and its control code."""

    text: str
    stall: int
    write: int
    read: int
    wait: int

    @property
    def name(self) -> str:
        """The operation, without its predicate."""
        return re.sub(r"^@!?U?P\d+\s+", "", self.text).split()[0]

    @property
    def unit(self) -> str:
        """The unit that executes it."""
        return next((unit for unit, names in UNITS.items() if self.name.startswith(names)), "other")

    def latency(self, cached: int) -> int:
        """Cycles to its result; `cached` is the latency of loads of x, B and C."""
        if self.unit != "memory":
            return LATENCY[self.unit]
        if self.name.startswith("LDG"):
            return L1 if self.name == "LDG.E" else cached  # 32 bits: dt, which this warp has just written
        return SHARED_LATENCY

    @staticmethod
    def read_from(text: str, word: int) -> Instruction:
        """Decode the control code in the 128-bit instruction word."""
        code = word >> 105
        return Instruction(text, code & 15, code >> 5 & 7, code >> 8 & 7, code >> 11 & 63)


@dataclass(frozen=True, slots=True)
class Loop:
    """The scan's loop over tiles: what precedes the loop over tokens, that loop's body, and what follows it."""

    before: list[Instruction]
    body: list[Instruction]
    after: list[Instruction]
    tokens: int  # of one pass through the body

    @property
    def instructions(self) -> float:
        """Instructions a token, with a sixteenth of each tile's."""
        return len(self.body) / self.tokens + (len(self.before) + len(self.after)) / 16

    def trace(self) -> list[Instruction]:
        """The instructions of TILES tiles in order."""
        return (self.before + self.body * (16 // self.tokens) + self.after) * TILES

    def cycles(self, warps: int, cached: int) -> float:
        """Model cycles a token of each of `warps` warps on one scheduler, with loads from a cache of this latency."""
        return _simulated(self.trace(), warps, cached) / (16 * TILES)


def scan_loop(cubin: bytes) -> Loop:
    """Find the loops of `scan_tokens`: the innermost is that over tokens, the next one around it that over tiles."""
    instructions, labels = _parsed(disassembly(cubin, "-hex"))
    loops = sorted(_loops(instructions, labels), key=lambda loop: loop[1] - loop[0])
    first, last = next(loop for loop in loops if any("STG" in each.text for each in instructions[slice(*loop)]))
    begin, end = next(loop for loop in loops if loop[0] < first and loop[1] > last)
    body = instructions[first:last]
    stores = sum(each.name.startswith("STG") for each in body)
    return Loop(instructions[begin:first], body, instructions[last:end], stores)


def _parsed(assembly: str) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    lines = assembly.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        if found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);\s*/\* 0x([0-9a-f]{16}) \*/", line):
            high = re.search(r"/\* 0x([0-9a-f]{16}) \*/", following)
            assert high is not None, following
            instructions.append(Instruction.read_from(found[1].strip(), int(high[1], 16) << 64 | int(found[2], 16)))
    return instructions, labels


def _loops(instructions: list[Instruction], labels: dict[str, int]) -> Iterator[tuple[int, int]]:
    for at, instruction in enumerate(instructions):
        target = re.search(r"BRA.*`\((\.L_\w+)\)", instruction.text)
        if target and labels[target[1]] < at:
            yield labels[target[1]], at + 1


class _Warp:
    def __init__(self, start: int) -> None:
        self.next, self.free = 0, start
        self.barriers = [0] * 6

    def ready(self, step: _Step, busy: dict[str, int]) -> int:
        """Return the first cycle in which the warp can issue the step."""
        first = max(self.free, busy[step.unit])
        for barrier in step.waits:
            first = max(first, self.barriers[barrier])
        return first

    def issue(self, step: _Step, cycle: int) -> None:
        for barrier, delay in step.sets:
            self.barriers[barrier] = max(self.barriers[barrier], cycle + delay)
        self.free = cycle + step.stall
        self.next += 1


@dataclass(frozen=True, slots=True)
class _Step:
    """An instruction as the simulation needs it."""

    unit: str
    stall: int
    waits: tuple[int, ...]
    sets: tuple[tuple[int, int], ...]  # barrier, cycles until it is there

    @staticmethod
    def of(instruction: Instruction, cached: int) -> _Step:
        sets = (instruction.write, instruction.latency(cached)), (instruction.read, OPERANDS_READ)
        return _Step(
            instruction.unit,
            max(1, instruction.stall),
            tuple(bit for bit in range(6) if instruction.wait >> bit & 1),
            tuple(each for each in sets if each[0] != NO_BARRIER),
        )


def _simulated(trace: list[Instruction], count: int, cached: int) -> int:
    known = {instruction: _Step.of(instruction, cached) for instruction in set(trace)}
    steps = [known[instruction] for instruction in trace]
    waiting = [_Warp(APART * i) for i in range(count)]
    busy = dict.fromkeys(OCCUPIED, 0)
    cycle = last = 0
    while waiting:
        times = [warp.ready(steps[warp.next], busy) for warp in waiting]
        cycle = max(cycle, min(times))
        # The first ready warp issues instructions while it can; then it is last in the order.
        turn = next(i for i, time in enumerate(times) if time <= cycle)
        warp, waiting = waiting[turn], waiting[turn:] + waiting[:turn]
        step = steps[warp.next]
        busy[step.unit] = cycle + OCCUPIED[step.unit]
        warp.issue(step, cycle)
        if warp.next == len(steps):
            waiting.remove(warp)
            last = max(last, warp.free)
        cycle += 1
    return last
