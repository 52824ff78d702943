"""Tensors -> VimConfig, with a sentence for every value that the tensors do not show.

Uses names and shapes, and values of the RoPE table only. `model.loading.fit` checks whether every tensor fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from model.config import Family, VimConfig
from model.errors import WeightsError
from model.loading.geometry import Size, geometry, square
from model.loading.hints import Hints
from model.loading.names import verdict
from model.loading.released import PATCH, Released, by_file, with_shape

Tensors = Mapping[str, Tensor]
RELEASED = "as in the released models"
OLDER = "as in the older RoPE model, vim-tiny-73p1"
UNPUBLISHED = (
    "family = vim: no published model has these shapes; if VideoMamba's code trained it, the answers are wrong: "
    "set the family"
)
PLAIN_MAMBA = (
    "bimamba = none: no layer has *_b tensors, as with the plain Mamba block of stock mamba_ssm; if the model was "
    "trained in both directions, half of it is missing from this file"
)
ONE_CLASS = "scores = sigmoid: the head has one class, of which a softmax is always 1"
TITLES: dict[Family, str] = {"vim": "ViM", "videomamba": "VideoMamba", "mamba-reg": "Mamba-Reg"}


def infer(
    tensors: Tensors, hints: Hints, image_size: Size | None = None, family: Family | None = None
) -> tuple[VimConfig, tuple[str, ...]]:
    """Return the configuration with which the weights were trained, and one sentence for each assumption.

    `image_size` helps to distinguish stride from image size; if the tensors belong to another size, the result has the
    tensors' size. Raises WeightsError for tensors of another kind of model, and for those that fit published models of
    two families, unless `family` or a hint tells which it is.
    """
    if what := verdict(tensors):
        raise WeightsError(f"this is {what}")
    fields = visible_fields(tensors)
    count, rope_rows = patches(tensors), _shape(tensors, _ROPE, 2)[0] if fields["rope"] else 0
    fields["family"], guess = _family(fields, count, hints, family)
    size, stride, why = geometry(fields["family"], fields["patch_size"], count, rope_rows, hints, image_size)
    certain = stride == hints.known.get("stride") and size == square(hints.input_size or 0)
    unseen = _unseen(fields, hints)
    assumed = {name: hints.known.get(name, value) for name, (value, _) in unseen.items()}
    reasons = [f"{name} = {_text(value)}: {why}" for name, (value, why) in unseen.items() if name not in hints.known]
    plain = () if fields["bimamba"] != "none" else (PLAIN_MAMBA,)
    one_class = (ONE_CLASS,) if fields["num_classes"] == 1 else ()
    return VimConfig(image_size=size, stride=stride, **(fields | assumed)), (
        *guess,
        *plain,
        *one_class,
        *(() if certain else why),
        *reasons,
    )


def visible_fields(tensors: Tensors) -> dict[str, Any]:
    """Return the fields of VimConfig that names and shapes determine. Raises WeightsError for another kind of model."""
    width, channels, patch, across = _shape(tensors, "patch_embed.proj.weight", 4)
    if patch != across:
        raise WeightsError(f"patches of {patch}x{across} px: only square ones are supported")
    inner, d_state = _shape(tensors, f"{_MIXER}A_log", 2)
    has = tensors.keys().__contains__
    fields = {
        "embed_dim": width,
        "channels": channels,
        "patch_size": patch,
        "depth": len({found[1] for name in tensors if (found := re.match(r"layers\.(\d+)\.", name))}),
        "num_classes": _shape(tensors, "head.weight", 2)[0] if has("head.weight") else 0,
        "d_state": d_state,
        "d_conv": _shape(tensors, f"{_MIXER}conv1d.weight", 3)[2],
        "expand": _expand(inner, width),
        "dt_rank": _shape(tensors, f"{_MIXER}dt_proj.weight", 2)[1],
        "bimamba": _bimamba(tensors),
        "projection_bias": has(f"{_MIXER}in_proj.bias"),
        "conv_bias": has(f"{_MIXER}conv1d.bias"),
        "layer_scale": has(f"{_MIXER}gamma"),
        "norm": "layer" if has("norm_f.bias") else "rms",
        "pos_embed": has("pos_embed"),
        "rope": has(_ROPE),
    }
    if fields["rope"]:
        fields["rope_pretrained_grid"] = _rope_grid(tensors, width)
    return fields | (_spread_fields(tensors, width) if has(_SPREAD) else _token_fields(class_tokens(tensors)))


def class_tokens(tensors: Tensors) -> int:
    """Return the number of class tokens: 0, 1, 2, or any number of spread ones."""
    if _SPREAD in tensors:
        return _shape(tensors, _SPREAD, 3)[1]
    return 2 if "cls_token_head" in tensors else int("cls_token" in tensors)


def patches(tensors: Tensors) -> int | None:
    """Return the number of patches of the position embedding or the RoPE table; None without either."""
    if "pos_embed" in tensors:
        return _shape(tensors, "pos_embed", 3)[1] - (0 if _SPREAD in tensors else class_tokens(tensors))
    return _shape(tensors, _ROPE, 2)[0] if _ROPE in tensors else None


_MIXER = "layers.0.mixer."
_ROPE = "rope.freqs_cos"
_SPREAD = "pos_embed_cls"  # only spread class tokens have position embeddings of their own


def _shape(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
        some = ", ".join(list(tensors)[:4])
        raise WeightsError(
            f"this is not a Vision Mamba, VideoMamba or Mamba-Reg: no tensor {name!r} among {len(tensors)} ({some}, …)"
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or 0 in shape:
        raise WeightsError(f"{name} has shape {shape}: expected {axes} axes, none of them empty")
    return shape


def _expand(inner: int, width: int) -> float:
    """Return expand such that `int(expand * width)` is `inner`, also where the quotient rounds down."""
    quotient = inner / width
    if int(quotient * width) != inner:
        quotient = math.nextafter(quotient, math.inf)
    return int(quotient) if quotient == int(quotient) else quotient


def _bimamba(tensors: Tensors) -> str:
    if f"{_MIXER}A_b_log" not in tensors:
        return "none"
    return "v2" if f"{_MIXER}conv1d_b.weight" in tensors else "v1"


def _token_fields(tokens: int) -> dict[str, Any]:
    """The tensors show whether there are no, one or two class tokens, but not the position of a single one."""
    if tokens == 1:
        return {"pool": "cls"}
    return {"class_token": "double", "pool": "cls"} if tokens else {"class_token": "none"}


def _spread_fields(tensors: Tensors, width: int) -> dict[str, Any]:
    reduced = _shape(tensors, "neck.weight", 2)[0] if "neck.weight" in tensors else width
    return {
        "class_token": "spread",
        "pool": "cls",
        "spread_tokens": class_tokens(tensors),
        "neck_reduction": max(width // reduced, 1),
    }


def _rope_grid(tensors: Tensors, width: int) -> int:
    """Return the reference's pt_hw_seq_len, computed from the slowest frequency of grid position (1, 0)."""
    cos, sin, half = tensors[_ROPE], tensors.get("rope.freqs_sin"), width // 2
    side = math.isqrt(_shape(tensors, _ROPE, 2)[0])
    if sin is None or sin.shape != cos.shape or cos.shape[1] != width or width % 4 or side < 2 or cos.is_meta:
        return 14  # the released grid: 224 px in patches of 16
    angle = torch.atan2(sin[side, half - 1].double(), cos[side, half - 1].double()).item()
    return max(1, round(angle * side * math.pow(10000, (half - 2) / half)))


def _family(
    fields: Mapping[str, Any], count: int | None, hints: Hints, given: Family | None
) -> tuple[Family, tuple[str, ...]]:
    """Return the family, and the assumption about it.

    Raises WeightsError for shapes of published models of two families, and for a family that has no such tensors.
    """
    possible, named = _possible_families(fields), by_file(hints.file)
    if chosen := hints.known.get("family", given):
        if chosen not in possible:
            raise WeightsError(f"family {chosen!r} was asked for, but only {_titles(possible)} has such tensors")
        return chosen, ()
    if len(possible) == 1:
        return possible[0], ()
    if hints.family in possible:
        return hints.family, (f"family = {hints.family}: from the model's name in the checkpoint's args",)
    if named and named.family in possible:
        return named.family, (f"family = {named.family}: the file has the name of the released {named.name}",)
    if fields["bimamba"] == "none":  # no published model of either
        return "vim", ()
    shape = fields["embed_dim"], fields["depth"], count, fields["num_classes"]
    fitting = {one.family: one for one in with_shape(*shape)} if fields["patch_size"] == PATCH else {}
    if len(fitting) > 1:
        raise WeightsError(_undecided(list(fitting.values())))
    for family, one in fitting.items():
        return family, (f"family = {family}: of the published models only {one.name} has these shapes",)
    return "vim", (UNPUBLISHED,)


def _titles(families: Iterable[Family]) -> str:
    return " or ".join(TITLES[family] for family in families)


def _possible_families(fields: Mapping[str, Any]) -> tuple[Family, ...]:
    """Return the families whose code can have such tensors."""
    if fields.get("class_token") == "spread":
        return ("mamba-reg",)
    only_vim = fields["rope"] or fields["bimamba"] == "v1" or "class_token" in fields
    return ("vim",) if only_vim else ("vim", "videomamba")


def _undecided(fitting: list[Released]) -> str:
    models = " and ".join(
        f"{one.name} (class token {one.known['class_token']}, directions "
        f"{'halved' if one.known['divide_out'] else 'summed'})"
        for one in fitting
    )
    options = " or ".join(f"'{one.family}'" for one in fitting)
    return (
        f"these tensors fit two published models, {models}; loaded as the wrong one they give wrong answers; "
        f"say which one it is: family = {options} (VIM_MODEL_FAMILY, --family), or put a config.json beside the weights"
    )


def _unseen(fields: Mapping[str, Any], hints: Hints) -> dict[str, tuple[Any, str]]:
    """Return field -> (value, reason) for the fields that no tensor shows."""
    rope, source = fields["rope"], OLDER if fields["rope"] else RELEASED
    unseen: dict[str, tuple[Any, str]] = {}
    if fields["family"] != "vim":
        values = _OF_RELATIVES[fields["family"]] | _NEVER_SEEN
        return {name: (value, f"as in {TITLES[fields['family']]}") for name, value in values.items()}
    if "class_token" not in fields:
        unseen["class_token"] = _hinted(hints.class_token, "first" if rope else "middle", source)
    if fields["bimamba"] == "v2":
        unseen["divide_out"] = _hinted(hints.divide_out, not rope, source)
    if rope:
        unseen["rope_residual"] = (True, source)
    if "pool" not in fields:
        unseen["pool"] = ("mean", "in the name of every released model")
    return unseen | {name: (value, RELEASED) for name, value in _NEVER_SEEN.items()}


_OF_RELATIVES: dict[str, dict[str, Any]] = {
    "videomamba": {"class_token": "first", "divide_out": False},
    "mamba-reg": {"divide_out": True},
}
_NEVER_SEEN = {"bidirectional_layers": False, "flip": False, "norm_epsilon": 1e-5}


def _hinted(hint: Any, default: Any, source: str) -> tuple[Any, str]:
    return (default, source) if hint is None else (hint, "from the model's name in the checkpoint's args")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
