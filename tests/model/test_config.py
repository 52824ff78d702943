"""VimConfig accepts configurations that can run, and its errors say what is wrong with others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from model.config import VimConfig
from model.errors import ConfigError

SMALL: dict[str, Any] = {"img_size": 64, "depth": 4, "embed_dim": 40, "num_classes": 10}


def test_defaults_are_the_released_tiny_model() -> None:
    """224 px, patch 16: 196 patches and a class token in the middle."""
    config = VimConfig()

    assert (197, (98,), 384, 12) == (config.seq_len, config.class_slots, config.d_inner, config.dt_rank)


def test_is_frozen() -> None:
    """A configuration cannot change under a model that was built from it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        VimConfig().depth = 3  # type: ignore[misc]


def test_round_trip_through_config_json(tmp_path: Path) -> None:
    """A configuration that is written to config.json is read back equal."""
    config = VimConfig(image_size=(64, 96), expand=1.5, bimamba="v1", class_token="double")
    config.save(tmp_path / "config.json")

    assert config == VimConfig.read(tmp_path / "config.json")


def test_unknown_field_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """A typo in config.json is an error, never ignored."""
    (tmp_path / "config.json").write_text(json.dumps({"embed_dims": 40}))

    with pytest.raises(ConfigError, match="embed_dims.*did you mean 'embed_dim'"):
        VimConfig.read(tmp_path / "config.json")


@pytest.mark.parametrize("content", ["", "[1]", "{", "null"])
def test_config_file_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    """A config.json that is not a JSON object raises ConfigError, and the message names the file."""
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(ConfigError, match=r"config\.json"):
        VimConfig.read(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 0),
        ("depth", 2.5),
        ("depth", True),
        ("embed_dim", "40"),
        ("image_size", (224,)),
        ("image_size", 8),
        ("bimamba", "v3"),
        ("class_token", "last"),
        ("pool", "mean"),
        ("norm_epsilon", 0),
        ("flip", 1),
        ("d_state", 257),
        ("d_conv", 5),
        ("expand", 0.001),
    ],
)
def test_invalid_values_name_their_field(field: str, value: object) -> None:
    """An invalid value raises ConfigError on construction, and the message names the field."""
    with pytest.raises(ConfigError, match=field):
        VimConfig.from_dict({field: value})


def test_reference_arguments_that_cannot_matter_are_ignored() -> None:
    """Drop rates, placement, initialisers and dead arguments change nothing."""
    ignored: dict[str, Any] = {
        "drop_rate": 0.3,
        "drop_path_rate": 0.1,
        "device": "cuda",
        "dtype": None,
        "initializer_cfg": {},
        "ft_seq_len": 14,
        "fused_add_norm": False,
        "residual_in_fp32": False,
    }

    assert VimConfig.from_reference(**SMALL) == VimConfig.from_reference(**SMALL, **ignored)


def test_arguments_of_videomamba_are_translated() -> None:
    """VideoMamba's class token is first and its directions are summed; `bimamba` is an argument of its own."""
    config = VimConfig.from_reference(family="videomamba", img_size=448, embed_dim=576, depth=32, bimamba=True)

    assert (
        VimConfig(
            family="videomamba", image_size=(448, 448), embed_dim=576, depth=32, class_token="first", divide_out=False
        )
        == config
    )
    assert "none" == VimConfig.from_reference(family="videomamba", bimamba=False).bimamba
    with pytest.raises(ConfigError, match="if_cls_token"):
        VimConfig.from_reference(family="videomamba", if_cls_token=False)


MAMBAR_SMALL: dict[str, Any] = {"embed_dim": 384, "rms_norm": True, "num_cls_tokens": 12, "cls_reduce": 2}


def test_arguments_of_mamba_reg_are_translated() -> None:
    """Mamba-Reg's class tokens are spread, its patches never overlap, and without `rms_norm` it has LayerNorm."""
    config = VimConfig.from_reference(family="mamba-reg", patch_size=14, **MAMBAR_SMALL)

    assert (
        VimConfig(
            family="mamba-reg",
            patch_size=14,
            stride=14,
            embed_dim=384,
            class_token="spread",
            spread_tokens=12,
            neck_reduction=2,
        )
        == config
    )
    assert (268, 2304) == (config.seq_len, config.feature_dim)
    assert "layer" == VimConfig.from_reference(family="mamba-reg", num_cls_tokens=12).norm
    with pytest.raises(ConfigError, match="stride"):
        VimConfig.from_reference(family="mamba-reg", stride=8)
    with pytest.raises(ConfigError, match="num_cls_tokens 0 leaves nothing to classify"):
        VimConfig.from_reference(family="mamba-reg", num_cls_tokens=0)


@pytest.mark.parametrize("tokens", [1, 4, 12, 16])
def test_spread_class_tokens_end_groups_of_equal_length(tokens: int) -> None:
    """Positions of spread class tokens are those of Mamba-Reg's `get_cls_idx`; remaining patches come last."""
    config = VimConfig(family="mamba-reg", class_token="spread", spread_tokens=tokens)
    group = 196 // (tokens + 1)

    assert list(range(group, group * (tokens + 1) + tokens, group + 1)) == list(config.class_slots)
    assert 196 + tokens == config.seq_len


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "vim"}, "class_token 'spread' is that of family 'mamba-reg' only"),
        ({"class_token": "middle"}, "class_token 'spread' is that of family 'mamba-reg' only"),
        ({"spread_tokens": 0}, "spread_tokens 0 does not go with class_token 'spread'"),
        ({"image_size": (48, 48)}, "9 patches are too few for 12 spread class tokens"),
        ({"neck_reduction": 5}, "neck_reduction 5 needs .* an embed_dim that it divides"),
        ({"pool": "mean"}, "pool 'mean' does not go with class_token 'spread'"),
    ],
)
def test_spread_class_tokens_are_checked(changes: dict[str, Any], message: str) -> None:
    """Spread class tokens that Mamba-Reg cannot compute are refused, and so is the family without them."""
    config = VimConfig(family="mamba-reg", class_token="spread", spread_tokens=12)

    with pytest.raises(ConfigError, match=message):
        config.replace(**changes)


def test_only_spread_class_tokens_have_a_neck() -> None:
    """Fields of Mamba-Reg alone are refused in other models."""
    for changes in ({"spread_tokens": 3}, {"neck_reduction": 2}):
        with pytest.raises(ConfigError, match="does not go with|needs class_token 'spread'"):
            VimConfig.from_dict(changes)


def test_one_class_has_a_sigmoid() -> None:
    """One class has sigmoid scores, because a softmax of one class is always 1."""
    assert "softmax" == VimConfig().score_function
    assert "sigmoid" == VimConfig(num_classes=1).score_function
    assert "sigmoid" == VimConfig(scores="sigmoid").score_function
    with pytest.raises(ConfigError, match="scores 'softmax' of one class are always 1"):
        VimConfig(num_classes=1, scores="softmax")


def test_misspelt_reference_argument_is_refused() -> None:
    """The misspelt `if_devide_out`, which the reference ignores, is an error with the right name."""
    with pytest.raises(ConfigError, match="if_devide_out.*did you mean 'if_divide_out'"):
        VimConfig.from_reference(**SMALL, if_devide_out=True)


CRASHES: dict[str, dict[str, Any]] = {
    "rope_double_cls": {"if_rope": True, "use_double_cls_token": True},
    "rope_stride8": {"if_rope": True, "stride": 8},
    "rope_odd_patches_cls": {"if_rope": True, "img_size": 48},
    "rope_odd_patches_nocls": {"if_rope": True, "img_size": 48, "if_cls_token": False},
    "rope_nonsquare": {"if_rope": True, "img_size": [64, 96]},
    "rope_embed_not_multiple_of_4": {"if_rope": True, "embed_dim": 42},
    "nocls_unknown_pool": {"if_cls_token": False, "final_pool_type": "avg"},
    "ssm_cfg_d_state": {"ssm_cfg": {"d_state": 8}},
    "d_conv5": {"ssm_cfg": {"d_conv": 5}},
    "d_conv1": {"ssm_cfg": {"d_conv": 1}},
    "d_state_300": {"d_state": 300},
    "stride_tuple": {"stride": [16, 16]},
    "random_flip": {"flip_img_sequences_ratio": 0.5},
    "unknown_bimamba": {"bimamba_type": "v3"},
    "slow_path": {"ssm_cfg": {"use_fast_path": False}},
    "unknown_ssm_entry": {"ssm_cfg": {"d_konv": 3}},
}


@pytest.mark.parametrize("name", CRASHES)
def test_what_crashes_the_reference_is_refused_at_construction(name: str) -> None:
    """Configurations that fail or mislead in the reference, such as a random flip, raise ConfigError."""
    with pytest.raises(ConfigError):
        VimConfig.from_reference(**SMALL | CRASHES[name])


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"if_bimamba": True}, {"bimamba": "v1"}),
        ({"use_double_cls_token": True, "use_middle_cls_token": False}, {"class_token": "double"}),
        ({"if_cls_token": False, "final_pool_type": "none"}, {"class_token": "none", "pool": "last"}),
        ({"final_pool_type": "max"}, {"pool": "cls"}),
        ({"flip_img_sequences_ratio": 1.0}, {"flip": True}),
        ({"flip_img_sequences_ratio": 0}, {"flip": False}),
        ({"ssm_cfg": {"dt_rank": "auto", "expand": 1.5, "bias": True}}, {"expand": 1.5, "projection_bias": True}),
        ({"init_layer_scale": 0.0}, {"layer_scale": True}),
    ],
)
def test_reference_arguments_are_translated(kwargs: dict[str, Any], expected: dict[str, Any]) -> None:
    """Combinations of the reference's arguments become one plain field each."""
    config = VimConfig.from_reference(**SMALL, **kwargs)

    assert expected == {name: getattr(config, name) for name in expected}
