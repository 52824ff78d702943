"""The architecture of a Vision Mamba as one frozen, validated value. Uses neither torch nor weight files.

`VimConfig.from_reference` translates the constructor arguments of hustvl/Vim (`vim/models_mamba.py`, VisionMamba).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from model.errors import ConfigError, reject_unknown
from model.reference_config import translate

Family = Literal["vim", "videomamba", "mamba-reg"]
BimambaType = Literal["none", "v1", "v2"]
ClassToken = Literal["middle", "first", "double", "none", "spread"]
Pool = Literal["cls", "last", "mean", "max", "all"]
Norm = Literal["rms", "layer"]
Scores = Literal["softmax", "sigmoid"]

TOKEN_WISE_POOLS = ("max", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class VimConfig:
    """All architecture options of the reference, under the usual terms.

    The defaults are those of the released Vim-tiny (224 px, 1,000 classes). Sizes are in pixels, height first.
    Construction raises ConfigError for a configuration that cannot run; the message names the field.
    """

    family: Family = "vim"  # whose code trained the model; the other fields define the computation
    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    stride: int = 16
    channels: int = 3
    embed_dim: int = 192
    depth: int = 24
    num_classes: int = 1000
    d_state: int = 16
    d_conv: int = 4
    expand: float = 2
    dt_rank: int = 0  # 0: ceil(embed_dim / 16)
    bimamba: BimambaType = "v2"
    bidirectional_layers: bool = False  # even layers run forward, odd ones backward
    class_token: ClassToken = "middle"
    spread_tokens: int = 0  # number of class tokens with class_token "spread", which only Mamba-Reg has
    neck_reduction: int = 1  # above 1 a neck reduces each spread class token to embed_dim / neck_reduction
    pool: Pool = "cls"
    pos_embed: bool = True
    rope: bool = False
    rope_residual: bool = False
    rope_pretrained_grid: int = 14  # the reference's pt_hw_seq_len
    flip: bool = False  # run over the tokens from last to first
    divide_out: bool = True  # halve the sum of both directions (v2 only)
    layer_scale: bool = False
    norm: Norm = "rms"
    norm_epsilon: float = 1e-5
    projection_bias: bool = False
    conv_bias: bool = True
    scores: Scores | Literal["auto"] = "auto"  # sigmoid for multi-label heads; auto is that for one class

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _pair("image_size", self.image_size))
        if self.dt_rank == 0 and _is_int(self.embed_dim):
            object.__setattr__(self, "dt_rank", math.ceil(self.embed_dim / 16))
        _check_types(self)
        _check_sizes(self)
        _check_pool(self)
        _check_spread(self)
        if self.num_classes == 1 and self.scores == "softmax":
            raise ConfigError("scores 'softmax' of one class are always 1: num_classes 1 needs 'sigmoid' or 'auto'")
        if self.rope or self.rope_residual:
            _check_rope(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns). Trailing pixels that do not fill a patch are dropped, as in the reference."""
        height, width = ((side - self.patch_size) // self.stride + 1 for side in self.image_size)
        return height, width

    @property
    def num_patches(self) -> int:
        """Number M of image patches."""
        return self.grid[0] * self.grid[1]

    @property
    def num_class_tokens(self) -> int:
        """Number of class tokens: 0, 1, 2 or `spread_tokens`."""
        return {"none": 0, "first": 1, "middle": 1, "double": 2, "spread": self.spread_tokens}[self.class_token]

    @property
    def seq_len(self) -> int:
        """Number L of tokens: patches and class tokens."""
        return self.num_patches + self.num_class_tokens

    @property
    def class_slots(self) -> tuple[int, ...]:
        """Positions of the class tokens in the sequence, which the head reads (reference: token_position).

        Spread tokens divide the patches into `spread_tokens` groups, each followed by its class token, and the rest
        (Mamba-Reg, utils.py, get_cls_idx).
        """
        patches = self.num_patches
        if self.class_token == "spread":
            step = patches // (self.spread_tokens + 1) + 1
            return tuple(step - 1 + step * index for index in range(self.spread_tokens))
        return {"none": (), "first": (0,), "middle": (patches // 2,), "double": (0, patches + 1)}[self.class_token]

    @property
    def d_inner(self) -> int:
        """Width E inside the mixer."""
        return int(self.expand * self.embed_dim)

    @property
    def feature_dim(self) -> int:
        """Width of the input of the head: `embed_dim`, or for spread class tokens that of all of them side by side."""
        if self.class_token != "spread":
            return self.embed_dim
        return self.spread_tokens * (self.embed_dim // self.neck_reduction)

    @property
    def score_function(self) -> Scores:
        """How the classifier's logits become scores."""
        if self.scores == "auto":
            return "sigmoid" if self.num_classes == 1 else "softmax"
        return self.scores

    @property
    def token_wise(self) -> bool:
        """Whether the head receives (B, L, D) rather than (B, D)."""
        return self.pool in TOKEN_WISE_POOLS

    def replace(self, **changes: Any) -> VimConfig:
        """Return a copy with some fields changed. Raises ConfigError for an unknown field."""
        reject_unknown(changes, {field.name for field in dataclasses.fields(self)}, "configuration field")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, in declaration order."""
        values = dataclasses.asdict(self)
        values["image_size"] = list(self.image_size)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VimConfig:
        """The inverse of `to_dict`. Raises ConfigError for an unknown field and suggests the nearest name."""
        reject_unknown(values, {field.name for field in dataclasses.fields(cls)}, "configuration field")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write `config.json`."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> VimConfig:
        """Read `config.json`. Raises ConfigError if the file is not a JSON object or not a valid configuration."""
        return cls.from_dict(read_object(Path(path)))

    @classmethod
    def from_reference(cls, *, family: Family = "vim", **kwargs: Any) -> VimConfig:
        """Translate the reference's constructor arguments (hustvl/Vim, VisionMamba.__init__).

        With `family="videomamba"` they are those of VideoMamba's image models (OpenGVLab/VideoMamba,
        image_sm/models/videomamba.py), which are ViM's with a class token first and directions summed; with
        `family="mamba-reg"` those of Mamba-Reg (wangf3014/Mamba-Reg, models_mamba.py).

        Arguments that cannot affect inference are ignored. An unknown argument raises ConfigError with the nearest
        valid name, while the reference ignores misspelt arguments (its own base model passes `if_devide_out`). With a
        class token `final_pool_type` is ignored, as in the reference, with one exception: `max` does not reduce the
        logits to shape (B,); they stay (B, classes).
        """
        return cls(family=family, **translate(kwargs, family))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(name: str, value: Any) -> tuple[int, int]:
    sides = (value, value) if _is_int(value) else value
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(_is_int(side) for side in sides):
        raise ConfigError(f"{name} must be an integer or two integers (height, width), got {value!r}")
    return sides[0], sides[1]


_CHOICES: dict[str, tuple[str, ...]] = {
    "family": get_args(Family),
    "bimamba": get_args(BimambaType),
    "class_token": get_args(ClassToken),
    "pool": get_args(Pool),
    "norm": get_args(Norm),
    "scores": ("auto", *get_args(Scores)),
}
_MINIMUM = {
    "patch_size": 1,
    "stride": 1,
    "channels": 1,
    "embed_dim": 1,
    "depth": 1,
    "spread_tokens": 0,
    "neck_reduction": 1,
    "num_classes": 0,
    "d_state": 1,
    "d_conv": 2,
    "dt_rank": 1,
    "rope_pretrained_grid": 1,
}
_MAXIMUM = {"d_conv": 4, "d_state": 256}  # limits of the reference's CUDA kernels


def _check_types(config: VimConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _CHOICES and value not in _CHOICES[field.name]:
            raise ConfigError(f"{field.name} must be one of {', '.join(_CHOICES[field.name])}, got {value!r}")
        if field.type == "bool" and not isinstance(value, bool):
            raise ConfigError(f"{field.name} must be true or false, got {value!r}")
        if field.type == "float" and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
            raise ConfigError(f"{field.name} must be a positive number, got {value!r}")
        if field.name in _MINIMUM and not _is_int(value):
            raise ConfigError(f"{field.name} must be an integer, got {value!r}")


def _check_sizes(config: VimConfig) -> None:
    for name, lowest in _MINIMUM.items():
        value = getattr(config, name)
        highest = _MAXIMUM.get(name)
        if value < lowest or (highest is not None and value > highest):
            allowed = f"at least {lowest}" if highest is None else f"between {lowest} and {highest}"
            raise ConfigError(f"{name} must be {allowed}, got {value}")
    if min(config.image_size) < config.patch_size:
        raise ConfigError(f"image_size {config.image_size} is smaller than one patch of {config.patch_size} px")
    if config.d_inner < 1:
        raise ConfigError(f"expand {config.expand} of embed_dim {config.embed_dim} leaves no inner channel")


def _check_pool(config: VimConfig) -> None:
    if (config.pool == "cls") != (config.class_token != "none"):
        raise ConfigError(
            f"pool {config.pool!r} does not go with class_token {config.class_token!r}: "
            "a model with a class token pools 'cls', one without pools 'last', 'mean', 'max' or 'all'"
        )


def _check_spread(config: VimConfig) -> None:
    spread = config.class_token == "spread"
    if spread != (config.family == "mamba-reg"):
        raise ConfigError(
            f"class_token 'spread' is that of family 'mamba-reg' only; got {config.class_token!r} "
            f"of family {config.family!r}"
        )
    if spread != (config.spread_tokens > 0):
        raise ConfigError(f"spread_tokens {config.spread_tokens} does not go with class_token {config.class_token!r}")
    if spread and config.num_patches <= config.spread_tokens:
        raise ConfigError(f"{config.num_patches} patches are too few for {config.spread_tokens} spread class tokens")
    if config.neck_reduction > 1 and (not spread or config.embed_dim % config.neck_reduction):
        raise ConfigError(
            f"neck_reduction {config.neck_reduction} needs class_token 'spread' and an embed_dim that it divides, "
            f"got {config.class_token!r} and {config.embed_dim}"
        )


def _check_rope(config: VimConfig) -> None:
    """The reference's table has (image_size // patch_size)^2 rows and requires the class token first (quirk 6)."""
    height, width = config.image_size
    rows = (height // config.patch_size) ** 2
    if not config.rope:
        raise ConfigError("rope_residual needs rope")
    if height != width:
        raise ConfigError(f"rope needs a square image, got {height}x{width}")
    if config.embed_dim % 4:
        raise ConfigError(f"rope needs embed_dim to be a multiple of 4, got {config.embed_dim}")
    if config.class_token == "double":
        raise ConfigError("rope does not work with two class tokens: its table has no row for them")
    rotated = config.seq_len - config.seq_len % 2
    if rotated != rows:
        raise ConfigError(
            f"rope has {rows} positions but {rotated} tokens to rotate: it needs stride equal to patch_size "
            f"and an even number of patches (stride {config.stride}, {config.num_patches} patches)"
        )
