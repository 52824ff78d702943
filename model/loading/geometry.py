"""Number of patches -> trained image size and stride; the tensors show only their quotient."""

from __future__ import annotations

import math
from collections.abc import Iterator

from model.config import Family
from model.errors import WeightsError
from model.loading.hints import Hints

Size = tuple[int, int]
USUAL_SIZE = 224
USUAL_SIZES = range(192, 2049)  # sizes that are trained with patches that do not overlap
FINE = (16, 729, 8)  # patch size, patches and stride of vim-tiny-plus and vim-small-plus, at 224 px


def geometry(
    family: Family, patch: int, count: int | None, rope_rows: int, hints: Hints, image_size: Size | None
) -> tuple[Size, int, tuple[str, ...]]:
    """Return the trained image size, the stride, and the assumptions.

    `patch` is the patch size, `count` the number of patches if any tensor shows it, `rope_rows` that of the rows of the
    RoPE table or 0, `image_size` the requested size. Raises WeightsError if no square image fits.
    """
    if rope_rows:
        return _rope_geometry(rope_rows, patch, image_size)
    if count is None:
        size = image_size or square(hints.input_size or USUAL_SIZE)
        stride = hints.stride or patch
        return size, stride, (f"stride = {stride}, image_size = {_px(size)}: without a position embedding none shows",)
    for size, strides in _candidates(patch, count, hints, image_size, family):
        if strides:
            stride = hints.stride if hints.stride in strides else strides[0]
            certain = size == image_size and strides == [stride]
            return size, stride, () if certain else _why(size, stride, patch, count, strides)
    raise WeightsError(f"{count} patch positions fit no square image: give image_size (height, width)")


def _candidates(
    patch: int, count: int, hints: Hints, image_size: Size | None, family: Family
) -> Iterator[tuple[Size, list[int]]]:
    """Yield the trained sizes that are likely, with the strides that fit each, the likeliest first.

    Odd strides, which do not divide the patch, come last: 14x14 positions are 224 px at stride 16, even when 192 is
    requested and stride 13 would fit. Without a size patches do not overlap, except in the published fine models. In
    Mamba-Reg they never overlap.
    """
    given = [size for size in (square(hints.input_size or 0), image_size) if size and min(size) >= patch]
    side = math.isqrt(count)
    whole = square(side * patch) if side * side == count > 0 else None
    lowest = patch if family == "mamba-reg" else 1
    for size in given:
        yield size, _strides(size, patch, count, lowest, plain=True)
    if (patch, count) == FINE[:2] and family == "vim":
        yield square(USUAL_SIZE), [FINE[2]]
    if whole and whole[0] in USUAL_SIZES:
        yield whole, [patch]
    for size in sorted(given, key=lambda size: size != image_size):
        yield size, _strides(size, patch, count, lowest, plain=False)
    if whole:
        yield whole, [patch]


def _strides(size: Size, patch: int, count: int, lowest: int, *, plain: bool) -> list[int]:
    """Return the strides from `lowest` to `patch` that give `count` patches, the likeliest first.

    Plain ones divide the patch.
    """

    def fits(stride: int) -> bool:
        return math.prod((side - patch) // stride + 1 for side in size) == count and not (plain and patch % stride)

    def unlikely(stride: int) -> tuple[bool, bool, int]:
        return stride != patch, any((side - patch) % stride for side in size), -stride

    return sorted(filter(fits, range(lowest, patch + 1)), key=unlikely)


def _why(size: Size, stride: int, patch: int, count: int, strides: list[int]) -> tuple[str, ...]:
    others = [f"stride {other}" for other in strides if other != stride]
    side = math.isqrt(count)
    if side * side == count and size != square(side * patch):
        others.append(f"{_px(square(side * patch))} at stride {patch}")
    also = f"; {' or '.join(others)} would fit as well" if others else ""
    return (f"stride = {stride}, image_size = {_px(size)}: {count} patch positions{also}",)


def _rope_geometry(rows: int, patch: int, image_size: Size | None) -> tuple[Size, int, tuple[str, ...]]:
    """The table has (size // patch)^2 rows and requires stride == patch (quirk 6)."""
    side = math.isqrt(rows)
    if side * side != rows:
        raise WeightsError(f"a RoPE table of {rows} rows fits no square image")
    if image_size and image_size[0] == image_size[1] and image_size[0] // patch == side:
        return image_size, patch, ()
    size = square(side * patch)
    return size, patch, (f"image_size = {_px(size)}: the RoPE table is for {side}x{side} patches of {patch} px",)


def square(side: int) -> Size:
    """Return the size of a square image."""
    return side, side


def _px(size: Size) -> str:
    return f"{size[0]}x{size[1]} px"
