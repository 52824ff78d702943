"""Translation of the constructor arguments of hustvl/Vim's VisionMamba, and of its relatives, to fields of VimConfig.

Sources: vim/models_mamba.py and mamba_ssm/modules/mamba_simple.py at commit dd0358a; image_sm/models/videomamba.py of
OpenGVLab/VideoMamba; models_mamba.py of wangf3014/Mamba-Reg. "Quirk n" is a number in the list of the reference's
unexpected behaviours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.errors import ConfigError, reject_unknown

# The reference's defaults of the arguments that affect a forward pass.
DEFAULTS: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "stride": 16,
    "depth": 24,
    "embed_dim": 192,
    "d_state": 16,
    "channels": 3,
    "num_classes": 1000,
    "ssm_cfg": None,
    "norm_epsilon": 1e-5,
    "rms_norm": True,
    "pt_hw_seq_len": 14,
    "if_bidirectional": False,
    "final_pool_type": "none",
    "if_abs_pos_embed": True,
    "if_rope": False,
    "if_rope_residual": False,
    "flip_img_sequences_ratio": -1.0,
    "if_bimamba": False,
    "bimamba_type": "v2",
    "if_cls_token": True,
    "if_divide_out": True,
    "init_layer_scale": None,
    "use_double_cls_token": False,
    "use_middle_cls_token": True,
}

# Arguments without effect on inference: regularisation, initialisation, placement, and those the reference never reads.
IGNORED = frozenset(
    {
        "drop_rate",
        "drop_path_rate",
        "initializer_cfg",
        "device",
        "dtype",
        "ft_seq_len",  # dead (quirk 3)
        "fused_add_norm",  # same numbers
        "residual_in_fp32",  # no effect in float32; the residual stream is always float32 here
    }
)

_COMMON = {
    "img_size",
    "patch_size",
    "depth",
    "embed_dim",
    "channels",
    "num_classes",
    "ssm_cfg",
    "norm_epsilon",
    "rms_norm",
}
# Family -> the arguments of its constructor that affect a forward pass.
CONSTRUCTORS: dict[str, set[str]] = {
    "vim": set(DEFAULTS),
    "videomamba": _COMMON | {"stride", "bimamba"},  # `bimamba` is v2 or none
    "mamba-reg": _COMMON | {"num_cls_tokens", "cls_reduce"},
}

SSM_IGNORED = frozenset({"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "device", "dtype"})
SSM_FIELDS = {"d_conv": "d_conv", "expand": "expand", "conv_bias": "conv_bias", "bias": "projection_bias"}
SSM_DUPLICATES = ("d_state", "layer_idx", "bimamba_type", "if_divide_out", "init_layer_scale")

POOLS = {"none": "last", "mean": "mean", "max": "max", "all": "all"}


def translate(kwargs: Mapping[str, Any], family: str = "vim") -> dict[str, Any]:
    """Return the VimConfig fields for the constructor arguments of a family's reference.

    See `model.config.VimConfig.from_reference`. Raises ConfigError for unknown arguments and for values that the
    reference cannot run.
    """
    reject_unknown(kwargs, CONSTRUCTORS[family] | IGNORED, "argument of the reference's constructor")
    given = DEFAULTS | {name: value for name, value in kwargs.items() if name in DEFAULTS}
    if family == "videomamba":  # its class token is first, and it sums both directions
        kind = "v2" if kwargs.get("bimamba", True) else "none"
        given |= {"use_middle_cls_token": False, "if_divide_out": False, "bimamba_type": kind}
    fields = _fields(given)
    return fields | _spread_fields(kwargs, fields) if family == "mamba-reg" else fields


def _spread_fields(kwargs: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields in which Mamba-Reg differs; its patches never overlap, and its `rms_norm` is off by default."""
    tokens, reduction = kwargs.get("num_cls_tokens", 1), kwargs.get("cls_reduce", 1)
    if tokens == 0:
        raise ConfigError("num_cls_tokens 0 leaves nothing to classify: Mamba-Reg's head reads the class tokens")
    return {
        "stride": fields["patch_size"],
        "class_token": "spread",
        "spread_tokens": tokens,
        "neck_reduction": reduction,
        "norm": "rms" if kwargs.get("rms_norm", False) else "layer",
    }


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of ViM's constructor -> fields of VimConfig."""
    class_token = _class_token(given)
    return {
        "image_size": given["img_size"],
        "patch_size": _square("patch_size", given["patch_size"]),
        "stride": given["stride"],
        "channels": given["channels"],
        "embed_dim": given["embed_dim"],
        "depth": given["depth"],
        "num_classes": max(given["num_classes"], 0),
        "d_state": given["d_state"],
        "bimamba": _bimamba(given),
        "bidirectional_layers": given["if_bidirectional"],
        "class_token": class_token,
        "pool": "cls" if class_token != "none" else _pool(given["final_pool_type"]),
        "pos_embed": given["if_abs_pos_embed"],
        "rope": given["if_rope"],
        # The reference reads if_rope_residual only under if_rope.
        "rope_residual": given["if_rope"] and given["if_rope_residual"],
        "rope_pretrained_grid": given["pt_hw_seq_len"],
        "flip": _flip(given["flip_img_sequences_ratio"]),
        "divide_out": given["if_divide_out"],
        "layer_scale": given["init_layer_scale"] is not None,
        "norm": "rms" if given["rms_norm"] else "layer",
        "norm_epsilon": given["norm_epsilon"],
    } | _ssm_fields(given["ssm_cfg"] or {})


def _class_token(given: Mapping[str, Any]) -> str:
    if not given["if_cls_token"]:
        return "none"
    if given["use_double_cls_token"]:
        return "double"
    return "middle" if given["use_middle_cls_token"] else "first"


def _pool(final_pool_type: Any) -> str:
    if final_pool_type not in POOLS:
        raise ConfigError(f"final_pool_type must be one of {', '.join(POOLS)}, got {final_pool_type!r}")
    return POOLS[final_pool_type]


def _bimamba(given: Mapping[str, Any]) -> str:
    """Quirk 4: if_bimamba forces v1. The reference treats an unknown type as 'none'; here it is an error."""
    kind = "v1" if given["if_bimamba"] else given["bimamba_type"]
    if kind not in ("none", "v1", "v2"):
        raise ConfigError(f"bimamba_type must be none, v1 or v2, got {kind!r} (the reference would silently take none)")
    return str(kind)


def _flip(ratio: Any) -> bool:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise ConfigError(f"flip_img_sequences_ratio must be a number, got {ratio!r}")
    if 0 < ratio < 1:
        raise ConfigError(
            f"flip_img_sequences_ratio {ratio} flips at random, also at inference: answers would differ "
            "from call to call; use 0 (never) or 1 (always)"
        )
    return ratio >= 1


def _square(name: str, value: Any) -> Any:
    if isinstance(value, (tuple, list)) and len(set(value)) == 1:
        return value[0]
    return value


def _ssm_fields(ssm_cfg: Mapping[str, Any]) -> dict[str, Any]:
    for name in SSM_DUPLICATES:
        if name in ssm_cfg:
            raise ConfigError(f"ssm_cfg cannot hold {name!r}: give it as the constructor's own argument")
    reject_unknown(ssm_cfg, {*SSM_FIELDS, *SSM_IGNORED, "dt_rank", "use_fast_path"}, "ssm_cfg entry")
    if not ssm_cfg.get("use_fast_path", True):
        raise ConfigError(
            "ssm_cfg use_fast_path=False silently drops the backward direction in the reference (quirk 5); "
            "use bimamba_type='none' if that is intended"
        )
    fields = {ours: ssm_cfg[theirs] for theirs, ours in SSM_FIELDS.items() if theirs in ssm_cfg}
    dt_rank = ssm_cfg.get("dt_rank", "auto")
    return fields if dt_rank == "auto" else fields | {"dt_rank": dt_rank}
