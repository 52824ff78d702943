"""The functions of explicit vectors, in the generic and the AVX-512 form, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import torch
from numba import njit

from model.jit import simd

needs_avx512 = pytest.mark.skipif(not simd.has_avx512(), reason="this CPU has no AVX-512")
FORMS = {
    "exp2": [simd.exp2_of_product_generic, pytest.param(simd.exp2_of_product_avx512, marks=needs_avx512)],
    "reciprocal": [simd.reciprocal_generic, pytest.param(simd.reciprocal_avx512, marks=needs_avx512)],
}
Array = np.ndarray[Any, np.dtype[np.float32]]


def applied(function: Any, *arguments: Array) -> Array:
    """Apply a function lane by lane to arrays whose length is a multiple of LANES."""
    inner = njit(inline="always")(function)
    load, store, lanes, out = simd.load, simd.store, simd.LANES, np.empty_like(arguments[0])

    @njit
    def one(a: Any, out: Any) -> None:
        for i in range(0, len(a), lanes):
            store(out, i, inner(load(a, i)))

    @njit
    def two(a: Any, b: Any, out: Any) -> None:
        for i in range(0, len(a), lanes):
            store(out, i, inner(load(a, i), load(b, i)))

    (one if len(arguments) == 1 else two)(*arguments, out)
    return out


@pytest.mark.parametrize("form", FORMS["exp2"])
def test_powers_of_two_are_right_to_the_last_bits(form: Any) -> None:
    """Powers are exact to the last bits, most of all for slow decays, whose errors accumulate over the tokens."""
    a = np.concatenate([-np.logspace(-9, 2, 160 * 16), np.linspace(-40, 20, 160 * 16)]).astype(np.float32)
    b = np.resize(np.linspace(0.5, 1.2, 7).astype(np.float32), a.shape)
    expected = np.exp2(a.astype(np.float64) * b)
    rounded = 6e-8 * np.log(2) * np.abs(a * b)  # where the product is rounded before the power is taken

    assert np.all(np.abs(applied(form, a, b) / expected - 1) <= 2.5e-7 + rounded)


@pytest.mark.parametrize("form", FORMS["exp2"])
def test_powers_of_two_beyond_the_range_are_zero_and_nan_stays(form: Any) -> None:
    """Powers below the range are zero for any exponent, and NaN stays NaN."""
    a = np.resize(np.array([-150, -1e4, -5e6, -1e30, -np.inf, 0, -0.0, np.nan], np.float32), 16)
    found = applied(form, a, np.ones_like(a))

    np.testing.assert_array_equal(found, np.resize(np.array([0, 0, 0, 0, 0, 1, 1, np.nan], np.float32), 16))


@pytest.mark.parametrize("form", FORMS["reciprocal"])
def test_reciprocals_are_right_to_the_last_bit_but_one(form: Any) -> None:
    """Reciprocals are exact to the last bit but one over the range that a sigmoid needs, and NaN stays NaN."""
    x = np.exp2(np.linspace(0, 126, 64 * 16)).astype(np.float32)

    assert np.all(np.abs(applied(form, x) * x.astype(np.float64) - 1) <= 1.3e-7)
    assert np.isnan(applied(form, np.full(16, np.nan, np.float32))).all()


def test_bfloat16_is_rounded_as_torch_does() -> None:
    """Rounding is to the nearest, ties to even; infinity and NaN are kept for any payload."""
    bits = np.random.default_rng(0).integers(0, 2**32, 64 * 16, np.uint32)
    special = [0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 0, 1]
    bits[: len(special)] = special
    numbers, out = bits.view(np.float32), np.zeros(len(bits), np.uint16)
    load, narrow, lanes = simd.load, simd.store_bfloat16, simd.LANES

    @njit
    def convert(a: Any, out: Any) -> None:
        for i in range(0, len(a), lanes):
            narrow(out, i, load(a, i))

    convert(numbers, out.ctypes.data)
    found, expected = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16), torch.from_numpy(numbers).bfloat16()

    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
