"""The table of tiles: its entries are used, errors name the wrong entry, and the rules are the default."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from model.backends.triton import tiles
from model.backends.triton.tiles import LIBRARY, Device, Tile
from model.errors import ScanError

H100 = Device(132, 232448)
HALF = torch.float16
ENTRY = {
    "kernel": "project",
    "width": 192,
    "dtype": "float16",
    "rows": 512,
    "tokens": 32,
    "channels": 64,
    "warps": 8,
    "stages": 2,
}


def table(*entries: dict[str, Any]) -> dict[tiles.Key, Tile]:
    """Read a table of these entries."""
    return tiles.read_table(json.dumps({"tiles": entries}))


def test_the_table_of_the_package_is_right() -> None:
    """The installed table can be read."""
    tiles.read_table(tiles.TABLE.read_text(encoding="utf-8"))


def test_a_tile_of_the_table_comes_before_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is for its kernel, width, dtype and class of rows alone."""
    monkeypatch.setattr(tiles, "_table", lambda: table(ENTRY))

    assert Tile(32, 64, 8, 2) == tiles.tile("project", 192, 197, HALF, H100)
    for kernel, width, rows, dtype in (
        ("project", 192, 513, HALF),
        ("project", 384, 197, HALF),
        ("project", 192, 197, torch.bfloat16),
    ):
        assert tiles.project_tile(rows, dtype) == tiles.tile(kernel, width, rows, dtype, H100)
    assert tiles.out_tile(197, 192, HALF, H100) == tiles.tile("out_project", 192, 197, HALF, H100)


def test_a_tile_that_does_not_fit_the_device_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with less shared memory than the tile needs takes the rule's."""
    monkeypatch.setattr(tiles, "_table", lambda: table(ENTRY | {"tokens": 128, "channels": 128, "stages": 5}))

    assert tiles.project_tile(197, HALF) == tiles.tile("project", 192, 197, HALF, Device(108, 101376))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kernel": "matmul"}, "kernel 'matmul', not one of project, scan, out_project"),
        ({"dtype": "float64"}, "dtype 'float64'"),
        ({"rows": 100}, "rows 100, not one of 512, 4096, 16384, null"),
        ({"tokens": 24}, "tokens 24, not one of 16, 32, 64, 128"),
        ({"channels": 0}, "channels 0"),
        ({"warps": 3}, "warps 3"),
        ({"stages": True}, "stages True, which is not a whole number"),
        ({"stages": 9}, "stages 9"),
        ({"kernel": "scan", "tokens": 24}, "tokens 24, not a multiple of 16"),
        ({"colour": "red"}, "must have exactly channels, dtype"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_in_words(changes: dict[str, Any], complaint: str) -> None:
    """The error has the number of the entry, the value and what is allowed."""
    with pytest.raises(ScanError, match=f"entry 2 of tiles.json .*{complaint}"):
        table(ENTRY, ENTRY | {"width": 384} | changes)


def test_an_entry_may_stand_once() -> None:
    """Two entries for the same case are refused, as are files that are no table."""
    with pytest.raises(ScanError, match="same kernel, width, dtype and rows"):
        table(ENTRY, ENTRY)
    for text in ("[]", "{", "{}"):
        with pytest.raises(ScanError, match="list 'tiles'"):
            tiles.read_table(text)


@pytest.mark.parametrize("rows", [197, 1576, 12608, 25216])
@pytest.mark.parametrize("width", [192, 384, 768])
@pytest.mark.parametrize("kernel", tiles.KERNELS)
def test_candidates_begin_with_the_tile_of_today_and_may_stand_in_the_table(kernel: str, width: int, rows: int) -> None:
    """Candidates differ from each other, fit the device, and are valid entries."""
    found = tiles.candidates(kernel, width, rows, HALF, H100)

    assert len(set(found)) == len(found) > 4
    if kernel != "scan":
        assert tiles.tile(kernel, width, rows, HALF, H100) == found[0]
    for each in found:
        sizes = {name: getattr(each, name) for name in ("tokens", "channels", "warps", "stages")}
        entry = ENTRY | {"kernel": kernel, "width": width, "rows": tiles.row_class(rows)} | sizes
        assert [each] == list(table(entry).values())
        assert kernel == "scan" or H100.shared >= tiles.shared_bytes(kernel, each, width, HALF)


def test_candidates_of_an_unknown_kernel_are_refused() -> None:
    """The error names the kernels."""
    with pytest.raises(ScanError, match="unknown kernel 'gate'; known: project, scan, out_project"):
        tiles.candidates("gate", 192, 197, HALF, H100)


def test_wide_models_take_cublas_in_large_batches() -> None:
    """The rule: out_proj by cuBLAS from a width of 768 and 4096 rows on, in half precision."""
    assert LIBRARY == tiles.tile("out_project", 768, 12608, HALF, H100)
    assert LIBRARY not in (
        tiles.tile("out_project", 768, 197, HALF, H100),
        tiles.tile("out_project", 384, 12608, HALF, H100),
        tiles.tile("out_project", 768, 12608, torch.float32, H100),
    )
