"""The kernels of the fused layer in Triton's interpreter: right numbers at every size, and every output written.

`test_interpreted` runs this file in a separate process, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.backends.triton import launch
from model.backends.triton.launch import Device
from model.backends.triton.tiles import LIBRARY
from model.backends.triton.weights import LayerWeights
from tests.model.backends.triton.interpreter import interpreter, tiles
from tests.model.backends.triton.problems import (
    DTYPES,
    LENGTHS,
    TOLERANCE,
    config,
    error,
    expected_end,
    expected_projection,
    expected_scan,
    low_rank,
    normal,
    prepared,
)

__all__ = ["interpreter", "tiles"]  # fixtures

H100 = Device(132, 232448)
ODD = config(16, expand=1.3125)  # 21 inner channels: a block of 32 with a tail


def scanned(length: int, dtype: torch.dtype, pieces: int = 1, scale: float = 1) -> tuple[Tensor, Tensor]:
    """Return the results of the kernel and of the reference for a seeded problem with 21 channels."""
    layer, mixer = prepared(ODD, dtype)
    xz, dbc = normal(1, length, 2 * ODD.d_inner, dtype=dtype), low_rank(layer, ODD, 1, length, scale)
    return launch.scan(xz, dbc, layer, pieces), expected_scan(xz, dbc, mixer)


@pytest.mark.parametrize("length", LENGTHS)
def test_scan_agrees_with_the_oracle_at_every_length(length: int) -> None:
    """The scan agrees for lengths shorter than the convolution, of one tile of 16 tokens, and one more."""
    assert error(*scanned(length, torch.float32)) <= TOLERANCE[torch.float32]


def test_scan_agrees_with_the_oracle_across_blocks_and_images() -> None:
    """The scan agrees for 37 channels: a full block and five more."""
    shape = config(16, expand=2.3125)
    layer, mixer = prepared(shape, torch.float32)
    xz, dbc = normal(2, 3, 2 * shape.d_inner), low_rank(layer, shape, 2, 3)

    assert error(launch.scan(xz, dbc, layer, 1), expected_scan(xz, dbc, mixer)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scan_keeps_state_and_dt_in_float32(dtype: torch.dtype) -> None:
    """In half precision only inputs and output are rounded."""
    assert error(*scanned(17, dtype)) <= TOLERANCE[dtype]


def test_scan_takes_pre_activations_of_dt_from_minus_30_to_30() -> None:
    """Softplus neither overflows nor loses small steps."""
    layer, mixer = prepared(ODD, torch.float32)
    xz, dbc = normal(1, 9, 2 * ODD.d_inner), low_rank(layer, ODD, 1, 9)
    raw = dbc[0, 0, :, 32:] @ layer.dt_proj[0].t()
    dbc[..., 32:] *= 30 / raw.abs().max()

    assert error(launch.scan(xz, dbc, layer, 1), expected_scan(xz, dbc, mixer)) <= TOLERANCE[torch.float32]


def test_scan_is_exact_where_all_steps_are_small() -> None:
    """Steps of dt near 1e-4 are exact, where log(1 + exp(x)) would lose digits; without D only dt has an effect."""
    layer, mixer = prepared(ODD, torch.float32)
    for end in ("", "_b"):
        mixer.get_parameter(f"dt_proj{end}.bias").fill_(-9.2)
        mixer.get_parameter(f"D{end}").fill_(0)
    layer.params[:, 21] = -9.2
    layer.params[:, 22] = 0
    xz, dbc = normal(1, 9, 2 * ODD.d_inner), low_rank(layer, ODD, 1, 9, scale=0.1)

    assert error(launch.scan(xz, dbc, layer, 1), expected_scan(xz, dbc, mixer)) <= TOLERANCE[torch.float32]


def test_scan_in_chunks_of_time_equals_the_scan_in_one() -> None:
    """Two chunks of 16 tokens and one of one token equal the scan in one chunk."""
    whole, _ = scanned(33, torch.float32)
    cut, expected = scanned(33, torch.float32, pieces=3)

    assert error(cut, whole.double()) <= 1e-6
    assert error(cut, expected) <= TOLERANCE[torch.float32]


def test_scan_of_197_tokens_in_13_pieces_equals_the_scan_in_one() -> None:
    """Thirteen pieces, the last of five tokens, equal the scan in one piece."""
    whole, _ = scanned(197, torch.float32)
    cut, expected = scanned(197, torch.float32, pieces=13)

    assert error(cut, whole.double()) <= 1e-6
    assert error(cut, expected) <= TOLERANCE[torch.float32]


def test_scan_of_the_reversed_tokens_with_exchanged_directions_is_the_reversed_scan() -> None:
    """The directions are mirror images: f(x; forward, backward) = flip f(flip x; backward, forward)."""
    layer, _ = prepared(ODD, torch.float32)
    xz, dbc = normal(2, 5, 2 * ODD.d_inner), low_rank(layer, ODD, 2, 5)
    mirrored = LayerWeights(
        layer.in_proj, layer.x_proj.flip(0), layer.dt_proj.flip(0), layer.params.flip(0), layer.out_proj
    )
    there = launch.scan(xz, dbc, layer, 1)
    back = launch.scan(xz.flip(1), dbc.flip(0, 2), mirrored, 1)

    torch.testing.assert_close(back.flip(0, 2), there, rtol=0, atol=0)


def test_a_change_of_one_token_only_reaches_its_own_side() -> None:
    """A changed token affects itself and later tokens in direction 0, itself and earlier ones in direction 1."""
    layer, _ = prepared(ODD, torch.float32)
    xz, dbc = normal(1, 8, 2 * ODD.d_inner), low_rank(layer, ODD, 1, 8)
    changed = xz.clone()
    changed[:, 4] += 1
    reached = (launch.scan(changed, dbc, layer, 1) != launch.scan(xz, dbc, layer, 1)).any(-1)[:, 0]

    assert [False] * 4 + [True] * 4 == reached[0].tolist()
    assert [True] * 5 + [False] * 3 == reached[1].tolist()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("length", LENGTHS)
def test_convolution_and_projection_agree_at_every_length(length: int) -> None:
    """Tokens of three images in one tile do not affect each other."""
    layer, mixer = prepared(ODD, torch.float32)
    xz = normal(3, length, 2 * ODD.d_inner)
    found = launch.project(xz, layer)

    assert error(found[..., : 32 + ODD.dt_rank], expected_projection(xz, mixer)) <= TOLERANCE[torch.float32]
    assert not found[..., 32 + ODD.dt_rank :].any()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 32])
def test_convolution_and_projection_agree_in_every_dtype(width: int, dtype: torch.dtype) -> None:
    """Convolution and projection agree over several channel blocks in every dtype."""
    shape = config(width)
    layer, mixer = prepared(shape, dtype)
    xz = normal(2, 11, 2 * shape.d_inner, dtype=dtype)
    found = launch.project(xz, layer)[..., : 32 + shape.dt_rank]

    assert error(found, expected_projection(xz, mixer)) <= TOLERANCE[dtype]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 32, 16])
def test_the_end_of_a_layer_agrees_in_every_dtype(width: int, dtype: torch.dtype) -> None:
    """Gate, halved out_proj, residual and norm agree for three parts, one part, and an odd number of channels."""
    shape = ODD if width == 16 else config(width)
    layer, mixer = prepared(shape, dtype)
    xz, y = normal(1, 19, 2 * shape.d_inner, dtype=dtype), normal(2, 1, 19, shape.d_inner, dtype=dtype, seed=3)
    residual, norm = normal(1, 19, width, seed=4), normal(width, seed=5)
    summed, normed = expected_end(y, xz, mixer, residual, norm)
    found = launch.out_project(y, xz, layer, residual, norm, 1e-5, H100)

    assert dtype == found.dtype
    assert error(residual, summed) <= TOLERANCE[dtype]
    assert error(found, normed) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 16])
def test_the_end_of_a_layer_agrees_around_a_library_product(width: int, dtype: torch.dtype) -> None:
    """Gate, out_proj by torch, residual and norm agree, also for a width and channels that are no powers of two."""
    shape = ODD if width == 16 else config(width)
    layer, mixer = prepared(shape, dtype)
    xz, y = normal(1, 19, 2 * shape.d_inner, dtype=dtype), normal(2, 1, 19, shape.d_inner, dtype=dtype, seed=3)
    residual, norm = normal(1, 19, width, seed=4), normal(width, seed=5)
    summed, normed = expected_end(y, xz, mixer, residual, norm)
    found = launch.out_project(y, xz, layer, residual, norm, 1e-5, H100, LIBRARY)

    assert dtype == found.dtype
    assert error(residual, summed) <= TOLERANCE[dtype]
    assert error(found, normed) <= TOLERANCE[dtype]


@pytest.mark.parametrize("width", [48, 32, 20])
def test_the_first_norm_widens_the_tokens(width: int) -> None:
    """The tokens become the residual stream in float32."""
    tokens, norm = normal(2, 5, width, dtype=torch.float16), normal(width)
    normed, residual = launch.first_norm(tokens, norm, 1e-5)

    torch.testing.assert_close(residual, tokens.float(), rtol=0, atol=0)
    expected = torch.nn.functional.rms_norm(tokens.double(), (width,), norm.double(), 1e-5)
    assert error(normed, expected) <= TOLERANCE[torch.float16]


def test_64_bit_offsets_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for tensors of 2^31 elements and more gives the same results."""
    layer, _ = prepared(ODD, torch.float32)
    xz, residual, norm = normal(1, 17, 2 * ODD.d_inner), normal(1, 17, 16, seed=4), normal(16, seed=5)

    def run() -> tuple[Tensor, ...]:
        stream = residual.clone()
        first = launch.first_norm(stream, norm, 1e-5)
        dbc = launch.project(xz, layer)
        y = launch.scan(xz, dbc, layer, 2)
        ends = [launch.out_project(y, xz, layer, stream, norm, 1e-5, H100, shape) for shape in (None, LIBRARY)]
        return (*first, dbc, y, *ends, stream)

    narrow = run()
    monkeypatch.setattr(launch, "WIDE_FROM", 0)
    assert launch.wide(xz)
    for before, after in zip(narrow, run(), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)
