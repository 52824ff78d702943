"""Which tile a kernel takes: that of the table `tiles.json`, or else that of a rule, which is not tuned.

An entry of the table:

    {"kernel": "project", "width": 192, "dtype": "float16", "rows": 512,
     "tokens": 16, "channels": 64, "warps": 4, "stages": 4}

    kernel   "project", "scan" or "out_project"
    width    D of the model
    dtype    "float16", "bfloat16" or "float32"
    rows     the class of B L, by its largest number: 512, 4096, 16384, or null for more

For "scan" only `tokens` matters: the tokens of a piece of time. Zeros for "out_project" mean cuBLAS, after one kernel
and before another.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.errors import ScanError

TABLE = Path(__file__).with_name("tiles.json")
KERNELS = ("project", "scan", "out_project")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
ROWS = (512, 4096, 16384)
MANY_ROWS = 4096
LIBRARY_WIDTH = 768
SHARED_SLACK = 24 << 10  # bytes of shared memory beside the tiles of the pipeline
LARGEST_RANK = 64
SCAN_TILE = 16
WHOLE = 1 << 24  # tokens of a piece, more than any sequence has
MOST_ACCUMULATORS = 128  # registers of a thread that hold sums

Key = tuple[str, int, torch.dtype, int | None]


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
    """The tokens and channels of a kernel's tile, its warps, and its pipeline stages."""

    tokens: int
    channels: int
    warps: int
    stages: int = 3


LIBRARY = Tile(0, 0, 0, 0)  # out_proj by cuBLAS, after one kernel and before another


def tile(kernel: str, width: int, rows: int, dtype: torch.dtype, device: Device) -> Tile:
    """Return the tile of "project" or "out_project" for B L = `rows` rows of D = `width`: the table's, or the rule's.

    A tile of the table that needs more shared memory than the device has is passed over.
    """
    found = tabled(kernel, width, rows, dtype)
    if found is not None and shared_bytes(kernel, found, width, dtype) <= device.shared:
        return found
    return project_tile(rows, dtype) if kernel == "project" else out_tile(rows, width, dtype, device)


def tabled(kernel: str, width: int, rows: int, dtype: torch.dtype) -> Tile | None:
    """Return the table's tile, or None. Raises ScanError for an invalid table."""
    return _table().get((kernel, width, dtype, row_class(rows)))


def row_class(rows: int) -> int | None:
    """Return the largest number of rows of the class, or None for the last one."""
    return next((most for most in ROWS if rows <= most), None)


def project_tile(rows: int, dtype: torch.dtype) -> Tile:
    """Return the rule's tile of "project": large for many rows, small where the device would idle."""
    if dtype == torch.float32:  # a mode for correctness: no matrix units
        return Tile(16, 32, 4)
    return Tile(16, 64, 4, 4) if rows < MANY_ROWS else Tile(64, 32, 4, 4)


def out_tile(rows: int, width: int, dtype: torch.dtype, device: Device) -> Tile:
    """Return the rule's tile of "out_project". One program holds `width` sums for each of its tokens in registers."""
    few = rows < MANY_ROWS or dtype == torch.float32
    if not few and width >= LIBRARY_WIDTH:
        return LIBRARY
    tokens = 16 if few else 64 if width <= 384 else 32
    channels = 64 if few and width <= 192 and dtype != torch.float32 else 32
    found = Tile(tokens, channels, 4 if width <= (384 if few else 192) else 8)
    if shared_bytes("out_project", found, width, dtype) > device.shared:
        return Tile(found.tokens, found.channels, found.warps, 2)
    return found


def shared_bytes(kernel: str, tile: Tile, width: int, dtype: torch.dtype) -> int:
    """Estimate the bytes of shared memory that a program takes: the data in its pipeline, and a reserve."""
    columns = 32 + LARGEST_RANK + 4 * tile.tokens if kernel == "project" else width + 3 * tile.tokens
    return max(0, tile.stages - 1) * tile.channels * columns * dtype.itemsize + SHARED_SLACK


def candidates(kernel: str, width: int, rows: int, dtype: torch.dtype, device: Device) -> list[Tile]:
    """Return the tiles that are worth timing for B L = `rows` rows of D = `width`, the current one first.

    Raises ScanError for a kernel other than "project", "scan" and "out_project".
    """
    if kernel not in KERNELS:
        raise ScanError(f"unknown kernel {kernel!r}; known: {', '.join(KERNELS)}")
    if kernel == "scan":
        return [Tile(tokens, 32, 1, 1) for tokens in (16, 32, 48, 64, 128, 256, WHOLE)]
    found = [tile(kernel, width, rows, dtype, device), *_tiles(kernel, width, rows, dtype, device)]
    if kernel == "out_project":
        found.append(LIBRARY)
    return list(dict.fromkeys(found))


def _tiles(kernel: str, width: int, rows: int, dtype: torch.dtype, device: Device) -> Iterator[Tile]:
    half = dtype != torch.float32
    columns = 32 + LARGEST_RANK if kernel == "project" else width
    for tokens in (16, 32, 64, 128) if half and rows > ROWS[0] else (16, 32):
        for channels, warps in ((32, 4), (64, 4), (32, 8), (64, 8)):
            if tokens * columns > MOST_ACCUMULATORS * 32 * warps:
                continue
            for stages in (2, 3, 4) if half else (3,):
                found = Tile(tokens, channels, warps, stages)
                if shared_bytes(kernel, found, width, dtype) <= device.shared:
                    yield found


@functools.cache
def _table() -> dict[Key, Tile]:
    return read_table(TABLE.read_text(encoding="utf-8"))


def read_table(text: str) -> dict[Key, Tile]:
    """Read the table. Raises ScanError, with the wrong entry and the reason."""
    try:
        entries = json.loads(text)["tiles"]
    except (ValueError, KeyError, TypeError) as error:
        raise ScanError(f"{TABLE.name} is not a JSON object with a list 'tiles': {error}") from error
    found: dict[Key, Tile] = {}
    for number, entry in enumerate(entries, 1):
        complaint = _complaint(entry)
        if complaint is None and _key(entry) in found:
            complaint = "has the same kernel, width, dtype and rows as one before"
        if complaint is not None:
            raise ScanError(f"entry {number} of {TABLE.name} {complaint}")
        found[_key(entry)] = _tile(entry)
    return found


def _key(entry: dict[str, Any]) -> Key:
    return entry["kernel"], entry["width"], DTYPES[entry["dtype"]], entry["rows"]


def _tile(entry: dict[str, Any]) -> Tile:
    return Tile(entry["tokens"], entry["channels"], entry["warps"], entry["stages"])


def _complaint(entry: Any) -> str | None:
    """Return None, or what is wrong with an entry."""
    wanted = {"kernel", "width", "dtype", "rows", "tokens", "channels", "warps", "stages"}
    if not isinstance(entry, dict) or set(entry) != wanted:
        return f"must have exactly {', '.join(sorted(wanted))}"
    if entry["kernel"] not in KERNELS:
        return f"has kernel {entry['kernel']!r}, not one of {', '.join(KERNELS)}"
    if entry["dtype"] not in DTYPES:
        return f"has dtype {entry['dtype']!r}, not one of {', '.join(DTYPES)}"
    if entry["rows"] not in (*ROWS, None):
        return f"has rows {entry['rows']!r}, not one of {', '.join(map(str, ROWS))}, null"
    numbers = {name: entry[name] for name in ("width", "tokens", "channels", "warps", "stages")}
    for name, value in numbers.items():
        if type(value) is not int or value < 0:
            return f"has {name} {value!r}, which is not a whole number"
    return _wrong_size(entry["kernel"], _tile(entry))


def _wrong_size(kernel: str, tile: Tile) -> str | None:
    if kernel == "out_project" and tile == LIBRARY:
        return None
    if kernel == "scan":
        right = tile.tokens > 0 and tile.tokens % SCAN_TILE == 0
        return None if right else f"has tokens {tile.tokens}, not a multiple of {SCAN_TILE}"
    for name, value, allowed in (
        ("tokens", tile.tokens, (16, 32, 64, 128)),
        ("channels", tile.channels, (16, 32, 64, 128)),
        ("warps", tile.warps, (1, 2, 4, 8, 16)),
        ("stages", tile.stages, (1, 2, 3, 4, 5)),
    ):
        if value not in allowed:
            return f"has {name} {value}, not one of {', '.join(map(str, allowed))}"
    return None
