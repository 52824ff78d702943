"""The scan on mamba-ssm's kernels: everything around the kernels, which stand-ins replace (`fake_kernels`).

No GPU is used: the self-test and `bench.gpu` check the kernels themselves.
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
    """Install stand-ins for both compiled modules."""
    return fake_kernels.install(monkeypatch)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill uninitialised memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("calls", "poisoned")
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(size: tuple[int, ...]) -> None:
    """One and two directions agree, at padded and unpadded lengths, for softplus inputs up to +-30."""
    exact = inputs(*size)
    expected = reference.scan(*exact)
    found = mamba_ssm.scan(*(x.float() for x in exact))

    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.usefixtures("calls", "poisoned")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_agree_within_their_tolerance(dtype: torch.dtype) -> None:
    """The recurrence stays float32, and the result has the model's dtype."""
    assert largest_error(mamba_ssm.scan, VimConfig(embed_dim=24), CPU, dtype) <= TOLERANCE[dtype]


@pytest.mark.usefixtures("calls")
def test_reversing_tokens_and_directions_reverses_the_result() -> None:
    """The two directions are mirror images of each other."""
    arguments = [x.float() for x in inputs(2, 2, 197, 6, 4)]

    torch.testing.assert_close(
        mamba_ssm.scan(*flipped(arguments)).flip(1), mamba_ssm.scan(*arguments), rtol=1e-4, atol=1e-4
    )


def test_both_directions_are_one_call(calls: Calls) -> None:
    """Both directions of the scan run in one kernel call."""
    mamba_ssm.scan(*(x.float() for x in inputs(2, 2, 9, 6, 4)))

    assert 1 == len(calls.lengths)


@pytest.mark.parametrize(("length", "runs_at"), [(197, 256), (730, 1024), (6085, 6144), (65, 65), (1025, 1025)])
def test_lengths_are_padded_to_the_aligned_path_unless_that_is_far(length: int, runs_at: int) -> None:
    """Lengths are padded to the kernel's blocks, as 197, 730 and 6,085 tokens, unless that nearly doubles them."""
    assert runs_at == mamba_ssm.padded(length)


def test_the_kernel_sees_the_padded_length(calls: Calls) -> None:
    """The kernel runs at the padded length, and the result has the original length."""
    found = mamba_ssm.scan(*(x.float() for x in inputs(2, 1, 100, 6, 4)))

    assert [128] == calls.lengths
    assert (1, 100, 6) == found.shape


def test_more_elements_than_the_kernel_counts_are_several_calls(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch beyond the kernel's 32-bit range is split into several calls with the same result."""
    arguments = [x.float() for x in inputs(2, 5, 9, 6, 4)]
    whole = mamba_ssm.scan(*arguments)
    monkeypatch.setattr(mamba_ssm, "CALL_ELEMENTS", 2 * 2 * 9 * 6)

    torch.testing.assert_close(mamba_ssm.scan(*arguments), whole, rtol=0, atol=0)
    assert [5, 2, 2, 1] == calls.images


@pytest.mark.usefixtures("calls")
def test_float64_is_refused_by_name() -> None:
    """float64, for which the kernel is not compiled, raises a ScanError that names it."""
    with pytest.raises(ScanError, match=r"not in torch\.float64"):
        mamba_ssm.scan(*inputs(1, 1, 2, 4, 2))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("taps", [2, 4])
def test_the_convolution_is_torchs(calls: Calls, directions: int, taps: int, bias: bool) -> None:
    """The convolution with SiLU equals torch's, in token order, for an input that is half of a wider row."""
    generator = torch.Generator().manual_seed(taps)
    x = torch.randn(3, 9, 32, generator=generator).chunk(2, dim=-1)[0]
    weight = torch.randn(directions, 16, taps, generator=generator)
    biases = torch.randn(directions, 16, generator=generator) if bias else None

    torch.testing.assert_close(mamba_ssm.causal_conv(x, weight, biases), conv.causal_conv(x, weight, biases))
    assert 1 == calls.convolutions


def test_a_width_that_the_kernel_does_not_take_goes_to_torch(calls: Calls) -> None:
    """Torch computes a number of channels that is not a multiple of the kernel's vectors of eight."""
    x, weight = torch.randn(1, 4, 12), torch.randn(2, 12, 4)

    torch.testing.assert_close(mamba_ssm.causal_conv(x, weight, None), conv.causal_conv(x, weight, None))
    assert 0 == calls.convolutions


@pytest.mark.parametrize("bimamba", ["none", "v1", "v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_whole_model_agrees(calls: Calls, monkeypatch: pytest.MonkeyPatch, bimamba: str, dtype: torch.dtype) -> None:
    """A whole model agrees for every wiring, with the strides that the mixer passes."""
    monkeypatch.setattr(mamba_ssm, "unavailable", lambda device: None)
    config, images = CONFIG.replace(bimamba=bimamba), torch.randn(2, 3, 64, 64)
    exact, ours = tiny_vim(config), tiny_vim(config).cast(dtype)
    ours.use_scan(choose("mamba_ssm", CPU))
    expected, found = exact.forward_features(images), ours.forward_features(images.to(dtype)).float()

    limit = {torch.float32: 1e-5, torch.float16: 1e-2}[dtype]
    assert float((found - expected).abs().max() / expected.abs().max()) <= limit
    assert CONFIG.depth == calls.convolutions == len(calls.lengths)


def test_on_a_cpu_it_says_that_it_is_for_cuda() -> None:
    """On a CPU the reason is that the kernels are for CUDA, whether the modules are installed or not."""
    with pytest.raises(ScanError, match="for CUDA devices"):
        choose("mamba_ssm", CPU)
    assert "mamba_ssm: its kernels are for CUDA devices" in choose("auto", CPU).why


@pytest.mark.usefixtures("calls")
def test_with_both_modules_it_is_there() -> None:
    """With both modules the scan is available; no GPU is queried."""
    assert mamba_ssm.unavailable(CUDA) is None


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("name", ["selective_scan_cuda", "causal_conv1d_cuda"])
def test_an_absent_module_is_named_with_the_command_that_builds_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one of the two modules is missing the reason names it and the command that builds it."""
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
    """The reason quotes the loader's message and says that the module was probably compiled against another torch."""
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
    """If a dependency of the module is missing the reason names it and does not suggest to compile again."""
    (tmp_path / "selective_scan_cuda.py").write_text("import a_library_that_is_not_here\n")
    monkeypatch.delitem(sys.modules, "selective_scan_cuda")
    monkeypatch.syspath_prepend(tmp_path)
    reason = mamba_ssm.unavailable(CUDA)

    assert "selective_scan_cuda does not load: No module named 'a_library_that_is_not_here'" == reason


def test_a_module_of_another_release_is_named(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without the expected function is reported as another release."""
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", ModuleType("causal_conv1d_cuda"))
    reason = mamba_ssm.unavailable(CUDA)

    assert reason is not None
    assert reason.startswith("causal_conv1d_cuda has no causal_conv1d_fwd")


def test_wrong_numbers_are_detected(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong numbers are an error if the scan was selected by name; `auto` takes the next scan and keeps the reason."""
    monkeypatch.setattr(mamba_ssm, "unavailable", lambda device: None)
    honest = sys.modules["selective_scan_cuda"].fwd
    monkeypatch.setattr(sys.modules["selective_scan_cuda"], "fwd", lambda *a: [1.001 * honest(*a)[0]])

    with pytest.raises(ScanError, match="'mamba_ssm' gives wrong numbers"):
        choose_verified("mamba_ssm", VimConfig(embed_dim=24), CPU, torch.float32)
    choice = choose_verified("auto", VimConfig(embed_dim=24), CPU, torch.float32)
    assert choice.name != "mamba_ssm"
    assert "mamba_ssm: failed its self-test" in choice.why


def test_a_wrong_convolution_is_detected(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong convolution fails the self-test, although the scan is right."""
    monkeypatch.setattr(mamba_ssm, "unavailable", lambda device: None)
    monkeypatch.setattr(sys.modules["causal_conv1d_cuda"], "causal_conv1d_fwd", lambda *a: a[5].zero_())

    assert 1.0 == pytest.approx(largest_conv_error(mamba_ssm.causal_conv, VimConfig(embed_dim=24), CPU, torch.float32))
    with pytest.raises(ScanError, match="wrong numbers"):
        choose_verified("mamba_ssm", VimConfig(embed_dim=24), CPU, torch.float32)


def test_kernels_for_other_gpus_are_passed_over(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing launch, such as `no kernel image is available`, makes `auto` take another scan."""
    monkeypatch.setattr(mamba_ssm, "unavailable", lambda device: None)

    def launch(*_: Tensor) -> list[Tensor]:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(sys.modules["selective_scan_cuda"], "fwd", launch)
    with pytest.raises(ScanError, match="does not run on cpu: CUDA error: no kernel image"):
        choose_verified("mamba_ssm", VimConfig(embed_dim=24), CPU, torch.float32)
    assert choose_verified("auto", VimConfig(embed_dim=24), CPU, torch.float32).name != "mamba_ssm"


@pytest.mark.usefixtures("calls")
def test_the_package_itself_is_never_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package `mamba_ssm`, which imports about fifty others, is never imported."""
    (tmp_path / "mamba_ssm.py").write_text("raise ImportError('transformers')\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert mamba_ssm.unavailable(CUDA) is None
    mamba_ssm.scan(*(x.float() for x in inputs(2, 1, 3, 8, 4)))
    assert "mamba_ssm" not in sys.modules
