"""Whole models through the fused layers, and the kernels of the composed path, in Triton's interpreter.

`test_interpreted` runs this file in a separate process, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.backends import fusion, reference
from model.backends.selftest import relative_error
from model.backends.triton import encoder, launch
from model.backends.triton import scan as backend
from model.backends.triton import tiles as tiles_of
from model.backends.triton.kernels import compose
from model.config import VimConfig
from model.conv import causal_conv
from model.errors import ScanError
from model.scan import ScanChoice
from model.vim import Vim
from tests.model import golden_relatives
from tests.model.backends.triton.interpreter import interpreter, tiles
from tests.model.backends.triton.problems import DTYPES, TOLERANCE, error
from tests.tiny import tiny_vim

__all__ = ["interpreter", "tiles"]  # fixtures

CPU = torch.device("cpu")
CHOICE = ScanChoice("triton", backend.scan, "under test", backend.causal_conv)
# As the released models: middle token, v2, RMSNorm, 16 states; width 3 * 16; 9 patches and the token.
CONFIG = VimConfig(image_size=(48, 48), embed_dim=48, depth=2, num_classes=7)


def fused_vim(config: VimConfig = CONFIG) -> Vim:
    """Return a seeded model with fused layers."""
    vim = tiny_vim(config)
    vim.use_scan(CHOICE)
    fusion.fuse(vim)
    return vim


@pytest.mark.usefixtures("tiles")
@torch.inference_mode()
def test_logits_of_the_fused_model_equal_those_of_torch() -> None:
    """The logits of a whole model agree with torch in float64."""
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    vim = fused_vim()
    assert vim.encoder is not None
    expected = tiny_vim(CONFIG).double()(images.double())

    assert error(vim(images), expected) <= TOLERANCE[torch.float32]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vm_base", "reg_12_small_grid"])
def test_relatives_give_the_numbers_of_their_own_code(name: str) -> None:
    """VideoMamba and Mamba-Reg run fused, within the limits for a float32 implementation."""
    vim = golden_relatives.built(name)
    vim.use_scan(CHOICE)
    fusion.fuse(vim)
    assert vim.encoder is not None

    golden_relatives.check(vim, name, images=1)


@torch.inference_mode()
@pytest.mark.parametrize(
    "changes",
    [
        {"flip": True, "divide_out": False, "conv_bias": False},
        {"class_token": "double", "pos_embed": False},
        {"class_token": "none", "pool": "mean", "expand": 1.5},
    ],
)
def test_what_does_not_touch_the_layers_keeps_them_fused(changes: dict[str, object]) -> None:
    """Class token, pool, flip, halving, the convolution's bias and the inner width do not prevent fusing."""
    config = CONFIG.replace(image_size=(32, 32), embed_dim=16, **changes)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    vim = fused_vim(config)
    assert vim.encoder is not None

    assert error(vim(images), tiny_vim(config).double()(images.double())) <= TOLERANCE[torch.float32]


@torch.inference_mode()
@pytest.mark.parametrize("number", range(4))
def test_every_variant_of_the_launches_agrees(number: int) -> None:
    """Each plan for checks on a device gives torch's numbers; 17 tokens are two pieces of time."""
    config = CONFIG.replace(image_size=(64, 64), embed_dim=16, depth=1)
    half = torch.float16
    plans = launch.variants(16, 17, half, launch.Device.of(CPU))
    assert 4 == len(plans)
    tokens = torch.randn(1, 17, 16, generator=torch.Generator().manual_seed(1)).to(half)
    vim = tiny_vim(config).cast(half)
    found = encoder.encoder(vim, plans[number])(tokens)

    assert error(found, vim.double().encode(tokens.double())) <= TOLERANCE[half]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bimamba": "v1"}, "need bimamba v2, this model has v1"),
        ({"bimamba": "none"}, "need bimamba v2, this model has none"),
        ({"bidirectional_layers": True}, "bidirectional_layers False"),
        ({"rope": True}, "rope False"),
        ({"norm": "layer"}, "norm rms, this model has layer"),
        ({"layer_scale": True}, "layer_scale False"),
        ({"d_state": 8}, "d_state 16, this model has 8"),
        ({"d_conv": 3}, "d_conv 4, this model has 3"),
        ({"projection_bias": True}, "no bias"),
        ({"embed_dim": 80}, "not 80"),
        ({"embed_dim": 2048}, "not 2048"),
        ({"dt_rank": 65}, "dt_rank up to 64"),
    ],
)
def test_other_configurations_are_composed_and_say_why(changes: dict[str, object], reason: str) -> None:
    """Unsupported configurations are composed, and `path`, which `/info` shows, has the reason."""
    config = VimConfig(image_size=(64, 64), embed_dim=48, depth=1).replace(**changes)
    with torch.device("meta"):
        vim = Vim(config, reference.scan)
    vim.use_scan(CHOICE)
    fusion.fuse(vim)

    assert vim.encoder is None
    assert vim.scan_choice is not None
    assert vim.scan_choice.path.startswith("composed: the fused layers")
    assert reason in vim.scan_choice.path


@pytest.mark.parametrize("name", ["192", "384", "768"])
def test_the_released_widths_are_fused(name: str) -> None:
    """The released widths are fused at any image size, but not in float64."""
    with torch.device("meta"):
        vim = Vim(VimConfig(embed_dim=int(name), depth=1, image_size=(512, 512)), reference.scan)

    assert encoder.unsupported(vim) is None
    assert "float64" in str(encoder.unsupported(vim.double()))


@pytest.mark.usefixtures("tiles")
@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_self_test_passes_right_layers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right layers pass the self-test against float64 in every dtype."""
    monkeypatch.setattr(fusion, "IMAGES", 1)
    monkeypatch.setattr(fusion, "TOKENS", 4)
    vim = tiny_vim(CONFIG.replace(embed_dim=16)).cast(dtype)
    vim.use_scan(CHOICE)
    fusion.fuse_verified(vim)

    assert vim.scan_choice is not None
    assert "fused" == vim.scan_choice.path
    assert vim.encoder is not None


@torch.inference_mode()
@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (lambda x: x * 1.01, "give wrong numbers on cpu: relative error 1.0e-02 in torch.float32"),
        (lambda x: x * float("nan"), "give wrong numbers on cpu: relative error inf"),
        (lambda x: x.no_such_method(), "do not run on cpu"),
    ],
)
def test_the_self_test_composes_layers_that_are_wrong(
    result: object, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that are wrong or fail are composed, and `/info` can show the reason."""
    monkeypatch.setattr(encoder, "layer_forward", lambda normed, *_: result(normed))  # type: ignore[operator]
    monkeypatch.setattr(fusion, "largest_error", _of_the_norm_alone(result))
    vim = fused_vim()
    fusion.fuse_verified(vim)

    assert vim.encoder is None
    assert vim.scan_choice is not None
    assert complaint in vim.scan_choice.path


def _of_the_norm_alone(result: object) -> object:
    exact = torch.linspace(-1, 1, 9)
    return lambda *_: relative_error(result(exact), exact.double())  # type: ignore[operator]


SIZES = [(1, 1, 1, 5, 1), (2, 1, 2, 5, 3), (2, 2, 4, 37, 16), (1, 1, 17, 5, 17), (2, 1, 5, 5, 33)]


@pytest.mark.parametrize("size", SIZES)
def test_the_composed_scan_agrees_with_the_oracle(size: tuple[int, ...]) -> None:
    """Any number of states agrees, in groups of sixteen, with pre-activations of dt from -30 to 30."""
    from tests.model.test_scan import inputs

    exact = inputs(*size)
    found = backend.scan(*(x.float() for x in exact))

    assert error(found, reference.scan(*exact)) <= TOLERANCE[torch.float32]


def test_the_composed_scan_refuses_float64() -> None:
    """float64 is refused instead of being rounded to float32."""
    from tests.model.test_scan import inputs

    with pytest.raises(ScanError, match="float64 choose 'torch'"):
        backend.scan(*inputs(1, 1, 1, 4, 2))


@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 3, 17])
def test_the_composed_convolution_agrees(length: int, taps: int) -> None:
    """One and two directions agree, with and without a bias, for x inside in_proj's output as the mixer passes it."""
    xz, weight, bias = torch.randn(2, length, 14), torch.randn(2, 7, taps), torch.randn(2, 7)
    x = xz.chunk(2, dim=-1)[0]
    for directions in (1, 2):
        part = weight[:directions], bias[:directions]
        expected = causal_conv(x.double(), part[0].double(), part[1].double())
        assert error(backend.causal_conv(x, *part), expected) <= TOLERANCE[torch.float32]
    plain = causal_conv(x.double(), weight.double(), None)
    assert error(backend.causal_conv(x.transpose(0, 1).contiguous().transpose(0, 1), weight, None), plain) <= 1e-5


def test_64_bit_offsets_change_nothing_on_the_composed_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for tensors of 2^31 elements and more gives the same results."""
    from tests.model.test_scan import inputs

    given = [x.float() for x in inputs(2, 1, 3, 5, 4)]
    conv = torch.randn(1, 3, 5), torch.randn(2, 5, 4), torch.randn(2, 5)

    def run() -> tuple[Tensor, Tensor]:
        return backend.scan(*given), backend.causal_conv(*conv)

    narrow = run()
    monkeypatch.setattr(compose, "WIDE_FROM", 0)
    for before, after in zip(narrow, run(), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tokens", "whole", "pieces"),
    [(197, 24, 13), (197, 192, 6), (197, 384, 1), (197, 3072, 1), (730, 24, 44), (6085, 192, 6), (6085, 1536, 1)],
)
def test_time_is_cut_at_small_batches_alone(tokens: int, whole: int, pieces: int) -> None:
    """On 132 processors sequences are cut, down to 16 tokens, where a batch would leave most schedulers idle."""
    assert pieces == launch.chunks(tokens, whole, 132)


def test_a_plan_takes_the_pieces_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of 32 tokens cuts 197 tokens in seven; without an entry the rule cuts them in thirteen."""
    xz, device = torch.empty(1, 197, 768, dtype=torch.float16, device="meta"), launch.Device(132, 232448)
    assert 13 == launch.plan(xz, 192, device).pieces

    monkeypatch.setattr(tiles_of, "_table", lambda: {("scan", 192, torch.float16, 512): launch.Tile(32, 32, 1, 1)})
    assert 7 == launch.plan(xz, 192, device).pieces
