"""Tensors -> VimConfig, with a sentence for every value that the tensors do not show.

Uses names and shapes, and values of the RoPE table only. `model.loading.fit` checks whether every tensor fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.config import Family, VimConfig
from model.errors import WeightsError
from model.loading.others import verdict
from model.loading.released import PATCH, Released, by_file, with_shape

Size = tuple[int, int]
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
USUAL_SIZE = 224
USUAL_SIZES = range(192, 2049)  # sizes that are trained with patches that do not overlap
FINE = (16, 729, 8)  # patch size, patches and stride of vim-tiny-plus and vim-small-plus, at 224 px
VIDEOMAMBA = "as in VideoMamba"


@dataclass(frozen=True, slots=True)
class Hints:
    """Hints from a training run's arguments, and what is `known` of a released model. Tensors override hints."""

    name: str = ""  # the reference's factory: vim_tiny_patch16_stride8_224_..._with_midclstok_div2
    input_size: int | None = None
    known: Mapping[str, Any] = field(default_factory=dict)  # by VimConfig field; not an assumption
    file: str = ""  # its name

    @classmethod
    def from_args(cls, args: Mapping[str, Any], known: Mapping[str, Any] | None = None, file: str = "") -> Hints:
        """Extract the hints from the `args` of a training checkpoint."""
        known = known or {}
        name, size = args.get("model"), known.get("image_size", args.get("input_size"))
        return cls(
            name if isinstance(name, str) else "", size if isinstance(size, int) and size > 0 else None, known, file
        )

    @property
    def stride(self) -> int | None:
        """The known stride, or the one in the factory's name."""
        if "stride" in self.known:
            return int(self.known["stride"])
        found = re.search(r"stride(\d+)", self.name)
        return int(found[1]) if found else None

    @property
    def family(self) -> Family | None:
        """The family if the factory's name begins with one; other programs name their models as they like."""
        return "videomamba" if self.name.startswith("videomamba") else "vim" if self.name.startswith("vim_") else None

    @property
    def class_token(self) -> str | None:
        """The class token's position if the name says middle or first; many names only say that there is a token."""
        found = re.search(r"(mid|first)(dle)?_?cls", self.name)
        return {"mid": "middle", "first": "first"}[found[1]] if found else None

    @property
    def divide_out(self) -> bool | None:
        """True if the name contains `div2`; other names say nothing."""
        return True if "div2" in self.name else None


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
    fields["family"], guess = _family(fields, patches(tensors), hints, family)
    size, stride, why = _geometry(tensors, fields, hints, image_size)
    certain = stride == hints.known.get("stride") and size == _square(hints.input_size or 0)
    unseen = _unseen(fields, hints)
    assumed = {name: hints.known.get(name, value) for name, (value, _) in unseen.items()}
    reasons = [f"{name} = {_text(value)}: {why}" for name, (value, why) in unseen.items() if name not in hints.known]
    plain = () if fields["bimamba"] != "none" else (PLAIN_MAMBA,)
    return VimConfig(image_size=size, stride=stride, **(fields | assumed)), (
        *guess,
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


def _family(
    fields: Mapping[str, Any], count: int | None, hints: Hints, given: Family | None
) -> tuple[Family, tuple[str, ...]]:
    """Return the family, and the assumption about it. Raises WeightsError for shapes of published models of both."""
    if found := hints.known.get("family", given):
        return found, ()
    if hints.family:
        return hints.family, (f"family = {hints.family}: from the model's name in the checkpoint's args",)
    if named := by_file(hints.file):
        return named.family, (f"family = {named.family}: the file has the name of the released {named.name}",)
    if fields["rope"] or fields["bimamba"] != "v2" or "class_token" in fields:  # only in ViM's code
        return "vim", ()
    shape = fields["embed_dim"], fields["depth"], count, fields["num_classes"]
    fitting = {one.family: one for one in with_shape(*shape)} if fields["patch_size"] == PATCH else {}
    if len(fitting) > 1:
        raise WeightsError(_undecided(list(fitting.values())))
    for family, one in fitting.items():
        return family, (f"family = {family}: of the published models only {one.name} has these shapes",)
    return "vim", (UNPUBLISHED,)


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
    if fields["family"] == "videomamba":
        unseen |= {"class_token": ("first", VIDEOMAMBA), "divide_out": (False, VIDEOMAMBA)}
        return unseen | {name: (value, VIDEOMAMBA) for name, value in _NEVER_SEEN.items()}
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
        size = image_size or _square(hints.input_size or USUAL_SIZE)
        stride = hints.stride or patch
        return size, stride, (f"stride = {stride}, image_size = {_px(size)}: without a position embedding none shows",)
    for size, strides in _candidates(patch, count, hints, image_size):
        if strides:
            stride = hints.stride if hints.stride in strides else strides[0]
            certain = size == image_size and strides == [stride]
            return size, stride, () if certain else _why(size, stride, patch, count, strides)
    raise WeightsError(f"{count} patch positions fit no square image: give image_size (height, width)")


def _candidates(patch: int, count: int, hints: Hints, image_size: Size | None) -> Iterator[tuple[Size, list[int]]]:
    """Yield the trained sizes that are likely, with the strides that fit each, the likeliest first.

    Odd strides, which do not divide the patch, come last: 14x14 positions are 224 px at stride 16, even when 192 is
    requested and stride 13 would fit. Without a size patches do not overlap, except in the published fine models.
    """
    given = [size for size in (_square(hints.input_size or 0), image_size) if size and min(size) >= patch]
    side = math.isqrt(count)
    whole = _square(side * patch) if side * side == count > 0 else None
    for size in given:
        yield size, _strides(size, patch, count, plain=True)
    if (patch, count) == FINE[:2]:
        yield _square(USUAL_SIZE), [FINE[2]]
    if whole and whole[0] in USUAL_SIZES:
        yield whole, [patch]
    for size in sorted(given, key=lambda size: size != image_size):
        yield size, _strides(size, patch, count, plain=False)
    if whole:
        yield whole, [patch]


def _strides(size: Size, patch: int, count: int, *, plain: bool) -> list[int]:
    """Return the strides without gaps that give `count` patches, the likeliest first; plain ones divide the patch."""

    def fits(stride: int) -> bool:
        return math.prod((side - patch) // stride + 1 for side in size) == count and not (plain and patch % stride)

    def unlikely(stride: int) -> tuple[bool, bool, int]:
        return stride != patch, any((side - patch) % stride for side in size), -stride

    return sorted(filter(fits, range(1, patch + 1)), key=unlikely)


def _why(size: Size, stride: int, patch: int, count: int, strides: list[int]) -> tuple[str, ...]:
    others = [f"stride {other}" for other in strides if other != stride]
    side = math.isqrt(count)
    if side * side == count and size != _square(side * patch):
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
