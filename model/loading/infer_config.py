"""Tensors -> VimConfig, with a sentence for every value that the tensors do not show.

Uses names and shapes, and values of the RoPE table only. `model.loading.fit` checks whether every tensor fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.config import VimConfig
from model.errors import WeightsError

Size = tuple[int, int]
Tensors = Mapping[str, Tensor]
RELEASED = "as in the released models"
OLDER = "as in the older RoPE model, vim-tiny-73p1"
PLAIN_MAMBA = (
    "bimamba = none: no layer has *_b tensors, as with the plain Mamba block of stock mamba_ssm; if the model was "
    "trained in both directions, half of it is missing from this file"
)
USUAL_SIZES = (224, 256, 288, 320, 384, 448, 512)  # no two have the same number of patches at any plain stride


@dataclass(frozen=True, slots=True)
class Hints:
    """Hints from a training run's arguments, and what is `known` of a released model. Tensors override hints."""

    name: str = ""  # the reference's factory: vim_tiny_patch16_stride8_224_..._with_midclstok_div2
    input_size: int | None = None
    known: Mapping[str, Any] = field(default_factory=dict)  # by VimConfig field; not an assumption

    @classmethod
    def from_args(cls, args: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> Hints:
        """Extract the hints from the `args` of a training checkpoint."""
        known = known or {}
        name, size = args.get("model"), known.get("image_size", args.get("input_size"))
        return cls(name if isinstance(name, str) else "", size if isinstance(size, int) and size > 0 else None, known)

    @property
    def stride(self) -> int | None:
        """The known stride, or the one in the factory's name."""
        if "stride" in self.known:
            return int(self.known["stride"])
        found = re.search(r"stride(\d+)", self.name)
        return int(found[1]) if found else None

    @property
    def class_token(self) -> str | None:
        """The class token's position if the name says middle or first; many names only say that there is a token."""
        found = re.search(r"(mid|first)(dle)?_?cls", self.name)
        return {"mid": "middle", "first": "first"}[found[1]] if found else None

    @property
    def divide_out(self) -> bool | None:
        """True if the name contains `div2`; other names say nothing."""
        return True if "div2" in self.name else None


def infer(tensors: Tensors, hints: Hints, image_size: Size | None = None) -> tuple[VimConfig, tuple[str, ...]]:
    """Return the configuration with which the weights were trained, and one sentence for each assumption.

    `image_size` helps to distinguish stride from image size; if the tensors belong to another size, the result has the
    tensors' size. Raises WeightsError for tensors of another kind of model.
    """
    fields = visible_fields(tensors)
    size, stride, why = _geometry(tensors, fields, hints, image_size)
    certain = stride == hints.known.get("stride") and size == _square(hints.input_size or 0)
    unseen = _unseen(fields, hints)
    assumed = {name: hints.known.get(name, value) for name, (value, _) in unseen.items()}
    reasons = [f"{name} = {_text(value)}: {why}" for name, (value, why) in unseen.items() if name not in hints.known]
    plain = () if fields["bimamba"] != "none" else (PLAIN_MAMBA,)
    return VimConfig(image_size=size, stride=stride, **(fields | assumed)), (
        *plain,
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
    return fields | _token_fields(class_tokens(tensors))


def class_tokens(tensors: Tensors) -> int:
    """Return the number of class tokens: 0, 1 or 2."""
    return 2 if "cls_token_head" in tensors else int("cls_token" in tensors)


def patches(tensors: Tensors) -> int | None:
    """Return the number of patches of the position embedding or the RoPE table; None without either."""
    if "pos_embed" in tensors:
        return _shape(tensors, "pos_embed", 3)[1] - class_tokens(tensors)
    return _shape(tensors, _ROPE, 2)[0] if _ROPE in tensors else None


_MIXER = "layers.0.mixer."
_ROPE = "rope.freqs_cos"


def _shape(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
        some = ", ".join(list(tensors)[:4])
        raise WeightsError(
            f"this is no Vision Mamba of hustvl/Vim: no tensor {name!r} among {len(tensors)} ({some}, …)"
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
    """The position of a single class token is not visible; that there are none or two is."""
    if tokens == 1:
        return {"pool": "cls"}
    return {"class_token": "double", "pool": "cls"} if tokens else {"class_token": "none"}


def _rope_grid(tensors: Tensors, width: int) -> int:
    """Return the reference's pt_hw_seq_len, computed from the slowest frequency of grid position (1, 0)."""
    cos, sin, half = tensors[_ROPE], tensors.get("rope.freqs_sin"), width // 2
    side = math.isqrt(_shape(tensors, _ROPE, 2)[0])
    if sin is None or sin.shape != cos.shape or cos.shape[1] != width or width % 4 or side < 2 or cos.is_meta:
        return 14  # the released grid: 224 px in patches of 16
    angle = torch.atan2(sin[side, half - 1].double(), cos[side, half - 1].double()).item()
    return max(1, round(angle * side * math.pow(10000, (half - 2) / half)))


def _unseen(fields: Mapping[str, Any], hints: Hints) -> dict[str, tuple[Any, str]]:
    """Return field -> (value, reason) for the fields that no tensor shows."""
    rope, source = fields["rope"], OLDER if fields["rope"] else RELEASED
    unseen: dict[str, tuple[Any, str]] = {}
    if "class_token" not in fields:
        unseen["class_token"] = _hinted(hints.class_token, "first" if rope else "middle", source)
    if fields["bimamba"] == "v2":
        unseen["divide_out"] = _hinted(hints.divide_out, not rope, source)
    if rope:
        unseen["rope_residual"] = (True, source)
    if "pool" not in fields:
        unseen["pool"] = ("mean", "in the name of every released model")
    return unseen | {name: (value, RELEASED) for name, value in _NEVER_SEEN.items()}


_NEVER_SEEN = {"bidirectional_layers": False, "flip": False, "norm_epsilon": 1e-5}


def _hinted(hint: Any, default: Any, source: str) -> tuple[Any, str]:
    return (default, source) if hint is None else (hint, "from the model's name in the checkpoint's args")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _geometry(
    tensors: Tensors, fields: Mapping[str, Any], hints: Hints, image_size: Size | None
) -> tuple[Size, int, tuple[str, ...]]:
    """Return the trained image size, the stride, and the assumptions."""
    patch, count = fields["patch_size"], patches(tensors)
    if fields["rope"]:
        return _rope_geometry(_shape(tensors, _ROPE, 2)[0], patch, image_size)
    if count is None:
        size = image_size or _square(hints.input_size or USUAL_SIZES[0])
        stride = hints.stride or patch
        return size, stride, (f"stride = {stride}, image_size = {_px(size)}: without a position embedding none shows",)
    for size, plain in _trained_sizes(hints, image_size):
        strides = _strides(size, patch, count, plain=plain)
        if strides:
            stride = hints.stride if hints.stride in strides else strides[0]
            certain = size == image_size and strides == [stride]
            return size, stride, () if certain else _why(size, stride, patch, count, strides)
    side = math.isqrt(count)
    if side * side != count or count < 1:
        raise WeightsError(f"{count} patch positions fit no square image: give image_size (height, width)")
    size = _square(side * patch)
    return size, patch, (f"image_size = {_px(size)}: {side}x{side} patches of {patch} px, no overlap",)


def _trained_sizes(hints: Hints, image_size: Size | None) -> list[tuple[Size, bool]]:
    """Return the sizes to try, and whether only plain strides count for each.

    Plain strides are tried first: 14x14 positions are 224 px at stride 16, even when 192 is requested and stride 13
    would fit.
    """
    hinted = _square(hints.input_size) if hints.input_size else None
    given = [size for size in (hinted, image_size) if size]
    released = _square(USUAL_SIZES[0])
    if not given:  # without other information the released models' size, at any stride
        return [(released, True), (released, False), *((_square(side), True) for side in USUAL_SIZES[1:])]
    odd = sorted([*given, released], key=lambda size: size != image_size)
    return [(size, True) for size in (*given, *map(_square, USUAL_SIZES))] + [(size, False) for size in odd]


def _strides(size: Size, patch: int, count: int, *, plain: bool) -> list[int]:
    """Return the strides without gaps that give `count` patches, the likeliest first; plain ones divide the patch."""
    if min(size) < patch:
        return []

    def fits(stride: int) -> bool:
        return math.prod((side - patch) // stride + 1 for side in size) == count and not (plain and patch % stride)

    def unlikely(stride: int) -> tuple[bool, bool, int]:
        return stride != patch, any((side - patch) % stride for side in size), -stride

    return sorted(filter(fits, range(1, patch + 1)), key=unlikely)


def _why(size: Size, stride: int, patch: int, count: int, strides: list[int]) -> tuple[str, ...]:
    others = [f"stride {other}" for other in strides if other != stride]
    side = math.isqrt(count)
    if patch % stride and side * side == count and size != _square(side * patch):
        others.append(f"{_px(_square(side * patch))} at stride {patch}")
    also = f"; {' or '.join(others)} would fit as well" if others else ""
    return (f"stride = {stride}, image_size = {_px(size)}: {count} patch positions{also}",)


def _rope_geometry(rows: int, patch: int, image_size: Size | None) -> tuple[Size, int, tuple[str, ...]]:
    """The table has (size // patch)^2 rows and requires stride == patch (quirk 6)."""
    side = math.isqrt(rows)
    if side * side != rows:
        raise WeightsError(f"a RoPE table of {rows} rows fits no square image")
    if image_size and image_size[0] == image_size[1] and image_size[0] // patch == side:
        return image_size, patch, ()
    size = _square(side * patch)
    return size, patch, (f"image_size = {_px(size)}: the RoPE table is for {side}x{side} patches of {patch} px",)


def _square(side: int) -> Size:
    return side, side


def _px(size: Size) -> str:
    return f"{size[0]}x{size[1]} px"
