"""The scan on mamba-ssm's kernels: everything around the kernels, which stand-ins replace (`fake_kernels`).

No GPU: that the kernels themselves give these numbers is for the self-test and for `bench.gpu`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from model import conv
from model.backends import mamba_ssm, reference
from model.backends.selftest import TOLERANCE, choose_verified, largest_conv_error, largest_error
from model.config import VimConfig
from model.errors import ScanError
from model.scan import choose
from tests.model.backends import fake_kernels
from tests.model.backends.fake_kernels import Calls
from tests.model.test_scan import flipped, inputs
from tests.tiny import CONFIG, tiny_vim

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES = [(1, 1, 1, 4, 2), (2, 1, 2, 4, 3), (2, 3, 5, 6, 16), (1, 2, 130, 8, 4), (2, 2, 197, 8, 16), (2, 1, 128, 4, 16)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for both compiled modules."""
    return fake_kernels.install(monkeypatch)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("calls", "poisoned")
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(size: tuple[int, ...]) -> None:
    """One direction and two, lengths that are padded and lengths that are not; softplus inputs up to +-30."""
    exact = inputs(*size)
    expected = reference.scan(*exact)
    found = mamba_ssm.scan(*(x.float() for x in exact))

    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.usefixtures("calls", "poisoned")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_agree_within_their_tolerance(dtype: torch.dtype) -> None:
    """What the recurrence needs wide stays wide, and the result comes in the model's dtype."""
    assert largest_error(mamba_ssm.scan, VimConfig(embed_dim=24), CPU, dtype) <= TOLERANCE[dtype]


@pytest.mark.usefixtures("calls")
def test_reversing_tokens_and_directions_reverses_the_result() -> None:
    """The two directions are mirror images of each other."""
    arguments = [x.float() for x in inputs(2, 2, 197, 6, 4)]

    torch.testing.assert_close(
        mamba_ssm.scan(*flipped(arguments)).flip(1), mamba_ssm.scan(*arguments), rtol=1e-4, atol=1e-4
    )


def test_both_directions_are_one_call(calls: Calls) -> None:
    """Half the launches."""
    mamba_ssm.scan(*(x.float() for x in inputs(2, 2, 9, 6, 4)))

    assert 1 == len(calls.lengths)


@pytest.mark.parametrize(("length", "runs_at"), [(197, 256), (730, 1024), (6085, 6144), (65, 65), (1025, 1025)])
def test_lengths_are_padded_to_the_aligned_path_unless_that_is_far(length: int, runs_at: int) -> None:
    """The released models' 197 and 730, 1,248 px, and two that would nearly double."""
    assert runs_at == mamba_ssm.padded(length)


def test_the_kernel_sees_the_padded_length(calls: Calls) -> None:
    """And nobody else does."""
    found = mamba_ssm.scan(*(x.float() for x in inputs(2, 1, 100, 6, 4)))

    assert [128] == calls.lengths
    assert (1, 100, 6) == found.shape


def test_more_elements_than_the_kernel_counts_are_several_calls(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a seam."""
    arguments = [x.float() for x in inputs(2, 5, 9, 6, 4)]
    whole = mamba_ssm.scan(*arguments)
    monkeypatch.setattr(mamba_ssm, "CALL_ELEMENTS", 2 * 2 * 9 * 6)

    torch.testing.assert_close(mamba_ssm.scan(*arguments), whole, rtol=0, atol=0)
    assert [5, 2, 2, 1] == calls.images


@pytest.mark.usefixtures("calls")
def test_float64_is_refused_by_name() -> None:
    """The kernel has no such instance."""
    with pytest.raises(ScanError, match=r"not in torch\.float64"):
        mamba_ssm.scan(*inputs(1, 1, 2, 4, 2))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("taps", [2, 4])
def test_the_convolution_is_torchs(calls: Calls, directions: int, taps: int, bias: bool) -> None:
    """In token order, SiLU included, from a half of a wider row as the mixer hands it over."""
    generator = torch.Generator().manual_seed(taps)
    x = torch.randn(3, 9, 32, generator=generator).chunk(2, dim=-1)[0]
    weight = torch.randn(directions, 16, taps, generator=generator)
    biases = torch.randn(directions, 16, generator=generator) if bias else None

    torch.testing.assert_close(mamba_ssm.causal_conv(x, weight, biases), conv.causal_conv(x, weight, biases))
    assert 1 == calls.convolutions


def test_a_width_that_the_kernel_does_not_take_goes_to_torch(calls: Calls) -> None:
    """Its vectors are eight channels."""
    x, weight = torch.randn(1, 4, 12), torch.randn(2, 12, 4)

    torch.testing.assert_close(mamba_ssm.causal_conv(x, weight, None), conv.causal_conv(x, weight, None))
    assert 0 == calls.convolutions


@pytest.mark.parametrize("bimamba", ["none", "v1", "v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_whole_model_agrees(calls: Calls, monkeypatch: pytest.MonkeyPatch, bimamba: str, dtype: torch.dtype) -> None:
    """Every wiring, with the strides that the mixer really hands over."""
    monkeypatch.setattr(mamba_ssm, "unavailable", lambda device: None)
    config, images = CONFIG.replace(bimamba=bimamba), torch.randn(2, 3, 64, 64)
    exact, ours = tiny_vim(config), tiny_vim(config).cast(dtype)
    ours.use_scan(choose("mamba_ssm", CPU))
    expected, found = exact.forward_features(images), ours.forward_features(images.to(dtype)).float()

    limit = {torch.float32: 1e-5, torch.float16: 1e-2}[dtype]
    assert float((found - expected).abs().max() / expected.abs().max()) <= limit
    assert CONFIG.depth == calls.convolutions == len(calls.lengths)


def test_on_a_cpu_it_says_that_it_is_for_cuda() -> None:
    """Also where both modules are installed."""
    with pytest.raises(ScanError, match="for CUDA devices"):
        choose("mamba_ssm", CPU)
    assert "mamba_ssm: its kernels are for CUDA devices" in choose("auto", CPU).why


@pytest.mark.usefixtures("calls")
def test_with_both_modules_it_is_there() -> None:
    """No GPU is asked for that."""
    assert mamba_ssm.unavailable(CUDA) is None


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("name", ["selective_scan_cuda", "causal_conv1d_cuda"])
def test_an_absent_module_is_named_with_the_command_that_builds_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either of the two."""
    monkeypatch.delitem(sys.modules, name)
    reason = mamba_ssm.unavailable(CUDA)

    assert reason is not None
    assert f"No module named '{name}'" in reason
    assert "make install-cuda" in reason


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    "failure",
    [
        "ImportError('/x/selective_scan_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEa')",
        "OSError('libcudart.so.13: cannot open shared object file')",
    ],
)
def test_a_module_that_does_not_load_is_explained(
    failure: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compiled against another torch, most often; the loader's own words are kept."""
    (tmp_path / "selective_scan_cuda.py").write_text(f"raise {failure}\n")
    monkeypatch.delitem(sys.modules, "selective_scan_cuda")
    monkeypatch.syspath_prepend(tmp_path)
    reason = mamba_ssm.unavailable(CUDA)

    assert reason is not None
    assert failure.split("'")[1] in reason
    assert "another torch" in reason


def test_a_library_that_the_module_needs_is_not_taken_for_the_module(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compiling again would not help."""
    (tmp_path / "selective_scan_cuda.py").write_text("import a_library_that_is_not_here\n")
    monkeypatch.delitem(sys.modules, "selective_scan_cuda")
    monkeypatch.syspath_prepend(tmp_path)
    reason = mamba_ssm.unavailable(CUDA)

    assert "selective_scan_cuda does not load: No module named 'a_library_that_is_not_here'" == reason


def test_a_module_of_another_release_is_named(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports and lacks the function."""
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", ModuleType("causal_conv1d_cuda"))
    reason = mamba_ssm.unavailable(CUDA)

    assert reason is not None
    assert reason.startswith("causal_conv1d_cuda has no causal_conv1d_fwd")


def test_wrong_numbers_are_detected(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name an error; for auto the next scan, and the reason is kept."""
    monkeypatch.setattr(mamba_ssm, "unavailable", lambda device: None)
    honest = sys.modules["selective_scan_cuda"].fwd
    monkeypatch.setattr(sys.modules["selective_scan_cuda"], "fwd", lambda *a: [1.001 * honest(*a)[0]])

    with pytest.raises(ScanError, match="'mamba_ssm' gives wrong numbers"):
        choose_verified("mamba_ssm", VimConfig(embed_dim=24), CPU, torch.float32)
    choice = choose_verified("auto", VimConfig(embed_dim=24), CPU, torch.float32)
    assert choice.name != "mamba_ssm"
    assert "mamba_ssm: failed its self-test" in choice.why


def test_a_wrong_convolution_is_detected(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan alone would pass."""
    monkeypatch.setattr(mamba_ssm, "unavailable", lambda device: None)
    monkeypatch.setattr(sys.modules["causal_conv1d_cuda"], "causal_conv1d_fwd", lambda *a: a[5].zero_())

    assert 1.0 == pytest.approx(largest_conv_error(mamba_ssm.causal_conv, VimConfig(embed_dim=24), CPU, torch.float32))
    with pytest.raises(ScanError, match="wrong numbers"):
        choose_verified("mamba_ssm", VimConfig(embed_dim=24), CPU, torch.float32)


def test_kernels_for_other_gpus_are_passed_over(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """`no kernel image is available` comes with the first launch."""
    monkeypatch.setattr(mamba_ssm, "unavailable", lambda device: None)

    def launch(*_: Tensor) -> list[Tensor]:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(sys.modules["selective_scan_cuda"], "fwd", launch)
    with pytest.raises(ScanError, match="does not run on cpu: CUDA error: no kernel image"):
        choose_verified("mamba_ssm", VimConfig(embed_dim=24), CPU, torch.float32)
    assert choose_verified("auto", VimConfig(embed_dim=24), CPU, torch.float32).name != "mamba_ssm"


@pytest.mark.usefixtures("calls")
def test_the_package_itself_is_never_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It brings fifty others along, and fails where one of them is missing."""
    (tmp_path / "mamba_ssm.py").write_text("raise ImportError('transformers')\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert mamba_ssm.unavailable(CUDA) is None
    mamba_ssm.scan(*(x.float() for x in inputs(2, 1, 3, 8, 4)))
    assert "mamba_ssm" not in sys.modules
