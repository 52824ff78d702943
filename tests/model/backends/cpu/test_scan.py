"""The compiled scan and convolution: any width, length and layout, NaN is kept, a missing compiler is reported."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import conv
from model.backends import reference
from model.backends.cpu import scan as cpu_scan
from model.scan import choose
from tests.model.test_scan import inputs

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[4]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference divided by the largest expected value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("size", [(2, 2, 130, 20, 5), (1, 1, 65, 33, 1), (2, 1, 64, 48, 16), (2, 3, 4, 16, 24)])
def test_any_length_width_and_number_of_states(size: tuple[int, ...]) -> None:
    """Lengths near the chunk of 64 tokens, widths that do and do not fill vectors, few and many states agree."""
    exact = inputs(*size)

    assert relative_error(cpu_scan.scan(*(x.float() for x in exact)), reference.scan(*exact)) <= 1e-5


def test_steps_beyond_the_exponents_range_end_in_zero_or_grow_without_overflow() -> None:
    """With pre-activations of +-1e4 and decay rates of 1e6 the state decays at once, and nothing becomes NaN."""
    exact = inputs(2, 1, 20, 16, 4)
    exact[1] = torch.where(exact[1] > 0, 1e4, -1e4).double()
    exact[2] = exact[2] * 1e6

    found = cpu_scan.scan(*(x.float() for x in exact))
    assert bool(torch.isfinite(found).all())
    assert relative_error(found, reference.scan(*exact)) <= 1e-5


@pytest.mark.parametrize("argument", [0, 1, 3, 6])
def test_nan_comes_out_where_it_went_in(argument: int) -> None:
    """A NaN in an input makes its output NaN, so that the service can refuse the result."""
    arguments = [x.float() for x in inputs(1, 1, 6, 16, 3)]
    arguments[argument].view(-1, arguments[argument].shape[-1])[2] = float("nan")

    assert bool(cpu_scan.scan(*arguments)[0, 2].isnan().all())


def test_layouts_do_not_matter() -> None:
    """Halves of a wider array, directions that share an array, and half precision are supported."""
    u, delta, A, B, C, D, z, bias = (x.float() for x in inputs(2, 2, 9, 16, 4))
    u[1], delta[1], B[1], C[1] = u[0], delta[0], B[0], C[0]
    expected = cpu_scan.scan(u, delta, A, B, C, D, z, bias)

    shared = [x[0].expand_as(x) for x in (u, delta, B, C)]
    half_of_wider = torch.cat((u[0], z), dim=-1)[..., 16:]
    found = cpu_scan.scan(shared[0], shared[1], A, shared[2], shared[3], D, half_of_wider, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

    narrow = cpu_scan.scan(u.bfloat16(), delta.bfloat16(), A, B.bfloat16(), C.bfloat16(), D, z.bfloat16(), bias)
    assert torch.bfloat16 == narrow.dtype
    assert relative_error(narrow, expected) <= 2e-2


def test_gradients_are_left_to_torch() -> None:
    """Results have gradients where they are required, because torch computes them then."""
    arguments = [x.float() for x in inputs(1, 1, 5, 16, 3)]
    arguments[0].requires_grad_(True)

    assert cpu_scan.scan(*arguments).requires_grad
    assert cpu_scan.causal_conv(arguments[0][0], torch.randn(1, 16, 4), None).requires_grad


@pytest.mark.parametrize("tokens", [1, 3, 16, 37])
@pytest.mark.parametrize("channels", [6, 32])
def test_the_convolution_agrees_with_torch(tokens: int, channels: int) -> None:
    """Both directions agree with torch, with and without a bias, for an input that is half of a wider array."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, 2 * channels, generator=generator)[..., channels:]
    weight, bias = torch.randn(2, channels, 4, generator=generator), torch.randn(2, channels, generator=generator)

    torch.testing.assert_close(cpu_scan.causal_conv(x, weight, bias), conv.causal_conv(x, weight, bias))
    torch.testing.assert_close(cpu_scan.causal_conv(x, weight, None), conv.causal_conv(x, weight, None))


def test_several_threads_may_scan_at_once() -> None:
    """Concurrent scans in several threads give the right results."""
    problems = [[x.float() for x in inputs(2, 2, 40, 32, 4 + i % 2)] for i in range(8)]
    expected = [reference.scan(*problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda problem: cpu_scan.scan(*problem), problems * 5))

    assert max(relative_error(a, b) for a, b in zip(found, expected * 5, strict=True)) <= 1e-5


def test_no_images_are_no_work() -> None:
    """An empty batch gives an empty result."""
    u, delta, A, B, C, D, z, bias = (x.float() for x in inputs(2, 1, 5, 16, 3))
    none = [x[:, :0] for x in (u, delta, B, C)]

    assert (0, 5, 16) == cpu_scan.scan(none[0], none[1], A, none[2], none[3], D, z[:0], bias).shape


def run_python(code: str, **environment: str) -> str:
    """Run code in a new interpreter and return what it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


_CHOOSE = "import torch; from model.scan import choose; c = choose('auto', torch.device('cpu')); print(c.name, c.why)"


@pytest.mark.parametrize("broken", ["raise ImportError('no numba here')", "raise OSError('libLLVM is damaged')"])
def test_without_a_working_numba_auto_takes_torch_and_says_why(broken: str, tmp_path: Path) -> None:
    """If numba is missing or cannot be loaded `auto` takes torch and gives the reason."""
    (tmp_path / "numba.py").write_text(broken)
    said = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {_CHOOSE}")

    assert said.startswith("torch fastest that runs on cpu")
    assert "numba: numba does not work here" in said


def test_it_is_for_cpus() -> None:
    """The scan is unavailable on other devices, and available on a CPU."""
    assert "it runs on a CPU" == cpu_scan.unavailable(torch.device("cuda"))
    assert "numba" == choose("numba", CPU).name
