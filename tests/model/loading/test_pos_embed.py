"""Other image sizes: positions move with their patches, class tokens stay, sizes that do not fit are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import Preprocess, VimConfig, load
from model.errors import ConfigError
from model.loading.geometry import Size
from model.loading.pos_embed import at_size, check_size, resample
from tests.golden import SHARED, needs_shared
from tests.model.loading.checkpoints import TINY, rope_state, state

SMALL = VimConfig(image_size=(224, 224), embed_dim=16, depth=2, num_classes=5, d_state=4)
TOKENS = ("middle", "first", "double", "none")


def with_tokens(config: VimConfig, kind: str) -> VimConfig:
    """The configuration with another kind of class token."""
    return config.replace(class_token=kind, pool="mean" if kind == "none" else "cls")


def slope(config: VimConfig) -> torch.Tensor:
    """Return positions (1, L, 2): each patch's centre, in image heights and widths; class tokens have 7 and 8."""
    down, across = ((torch.arange(n) + 0.5) / n for n in config.grid)
    patches = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).flatten(0, 1)
    positions = torch.empty(1, config.seq_len, 2)
    positions[0, [slot for slot in range(config.seq_len) if slot not in config.class_slots]] = patches
    for value, slot in enumerate(config.class_slots):
        positions[0, slot] = 7 + value
    return positions


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((14, 14), (15, 9)), ((15, 15), (32, 32)), ((9, 8), (7, 7))]
)
def test_positions_stay_where_they_were(kind: str, old: Size, new: Size) -> None:
    """Coordinates stay correct to a fraction of a patch, and class tokens keep their values."""
    before, after = (
        with_tokens(SMALL, kind).replace(image_size=(16 * down, 16 * across)) for down, across in (old, new)
    )

    found = resample(slope(before), before, after)

    inside = torch.tensor([slot not in after.class_slots for slot in range(after.seq_len)])
    grid = found[0, inside].reshape(*new, 2)
    expected = slope(after)[0, inside].reshape(*new, 2)
    torch.testing.assert_close(grid[3:-3, 3:-3], expected[3:-3, 3:-3], rtol=0, atol=0.1 / max(old))
    assert found[0, ~inside].flatten().tolist() == [7 + n // 2 for n in range(2 * after.num_class_tokens)]


@needs_shared
@pytest.mark.parametrize(("case", "old", "new"), [("7to4", 7, 4), ("14to24", 14, 24), ("14to27", 14, 27)])
def test_patches_are_resampled_as_in_the_reference(case: str, old: int, new: int) -> None:
    """The result equals the reference's where the class token is in slot 0 or there is none."""
    tokens = 0 if case == "7to4" else 1
    arrays = np.load(SHARED / "golden" / "ops.npz")
    before, after = (torch.from_numpy(arrays[f"posinterp_x{tokens}_{case}_{way}"]) for way in ("in", "out"))
    config = with_tokens(SMALL.replace(embed_dim=8), "first" if tokens else "none")

    found = resample(before, config.replace(image_size=16 * old), config.replace(image_size=16 * new))

    torch.testing.assert_close(found, after, rtol=0, atol=1e-5)


def test_spread_class_tokens_keep_their_own_embedding() -> None:
    """Only the embedding of patches is resampled, and the class tokens spread over the new number of patches."""
    old = SMALL.replace(family="mamba-reg", class_token="spread", spread_tokens=12, neck_reduction=4)
    patches = with_tokens(SMALL, "none")
    tensors = {"pos_embed": slope(patches), "pos_embed_cls": torch.randn(1, 12, 2)}

    new, moved = at_size(old, tensors, (384, 384))

    torch.testing.assert_close(moved["pos_embed"], resample(slope(patches), patches, patches.replace(image_size=384)))
    assert moved["pos_embed_cls"] is tensors["pos_embed_cls"]
    assert (576 // 13, 2 * (576 // 13) + 1) == new.class_slots[:2]


@pytest.mark.parametrize("kind", TOKENS)
def test_the_same_size_is_exactly_the_identity(kind: str) -> None:
    """At the trained size the tensors are returned unchanged, so the fingerprint stays."""
    config = with_tokens(TINY, kind)
    tensors = state(class_token=kind, pool=config.pool)

    same, kept = at_size(config, tensors, (32, 32))

    assert same is config
    assert all(kept[name] is tensor for name, tensor in tensors.items())


def test_resampling_is_float32_whatever_was_given() -> None:
    """Half-precision positions are resampled to float32."""
    positions = slope(SMALL).bfloat16()

    found = resample(positions, SMALL, SMALL.replace(image_size=384))

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, resample(positions.float(), SMALL, SMALL.replace(image_size=384)), rtol=0, atol=0)


@pytest.mark.parametrize("stride", [16, 8])
def test_one_file_serves_224_384_and_512(tmp_path: Path, stride: int) -> None:
    """One file loads at three sizes: preprocessing follows, results change smoothly, and 224 px is the file itself."""
    torch.save(state(patch_size=16, stride=stride, image_size=(224, 224)), tmp_path / "a.pth")
    models = {size: load(tmp_path / "a.pth", image_size=size, device="cpu") for size in (224, 384, 512)}

    for size, vim in models.items():
        assert vim.config.grid == (((size - 16) // stride + 1,) * 2)
        assert vim.preprocess == Preprocess(size=size)
        assert vim(torch.ones(1, 3, size, size)).isfinite().all()
    assert models[224].fingerprint == load(tmp_path / "a.pth", device="cpu").fingerprint
    assert len({vim.fingerprint for vim in models.values()}) == 3


def test_written_configurations_are_resampled_too(tmp_path: Path) -> None:
    """Resampling works with a given configuration, also to sizes that are not square."""
    torch.save(state(), tmp_path / "a.pth")

    for config in (None, TINY):
        assert load(tmp_path / "a.pth", config=config, image_size=48).config == TINY.replace(image_size=(48, 48))
        assert load(tmp_path / "a.pth", config=config, image_size=(32, 64)).pos_embed.shape == (1, 33, 16)


REFUSED: dict[str, tuple[dict[str, Any], Size, str]] = {
    "between": (
        {},
        (230, 230),
        "230x230 does not fit: patches of 16 px at stride 16 leave a rest; .*: 224x224 or 240x240",
    ),
    "one side": ({}, (224, 230), "leave a rest; the nearest sizes that fit: 224x224 or 224x240|240x240"),
    "stride": ({"stride": 8}, (230, 230), "at stride 8 leave a rest; the nearest sizes that fit: 224x224 or 232x232"),
    "small": ({}, (10, 10), "is smaller than one patch of 16 px; the nearest sizes that fit: 16x16"),
    "negative": ({}, (-224, 224), "is smaller than one patch"),
    "rope": ({"rope": True}, (240, 240), "even number of patches .*; the nearest sizes that fit: 224x224 or 256x256"),
    "rope, not square": ({"rope": True}, (224, 256), "rope needs a square image, got 224x256$"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_sizes_that_the_grid_cannot_take_are_refused(kind: str) -> None:
    """A size that whole patches do not fill is refused, and the error names the nearest sizes."""
    changes, size, message = REFUSED[kind]

    with pytest.raises(ConfigError, match=message):
        check_size(SMALL.replace(**changes), size)


def test_a_file_refuses_them_by_name(tmp_path: Path) -> None:
    """The error names the file, also where a size with a remainder has the file's number of patches."""
    torch.save(state(), tmp_path / "a.pth")

    for config in (None, TINY):
        with pytest.raises(ConfigError, match="35x35 does not fit: .* sizes that fit: 32x32 or 40x40"):
            load(tmp_path / "a.pth", config=config, image_size=35)


def test_rope_tables_are_computed_anew(tmp_path: Path) -> None:
    """RoPE tables are computed as in the reference: the trained grid's range of angles over more rows."""
    torch.save(rope_state(rope_residual=True, divide_out=False), tmp_path / "a.pth")

    vim = load(tmp_path / "a.pth", image_size=64, device="cpu")

    assert vim.config == TINY.replace(
        rope=True, class_token="first", rope_residual=True, divide_out=False, image_size=(64, 64)
    )
    assert vim.state_dict()["rope.freqs_cos"].shape == (64, 16)
    assert vim(torch.ones(1, 3, 64, 64)).isfinite().all()
