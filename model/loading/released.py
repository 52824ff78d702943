"""Model names that are not paths: the released models, and references to the hub.

This module only parses names: `model.loading.hub` downloads, `model.loading.source` decides what a name means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from model.config import Family

GRAMMAR = "owner/name[@revision][:file]"
_REFERENCE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([^@:]+))?(?::([^:]+))?")
_MIDDLE: dict[str, Any] = {
    "family": "vim",
    "image_size": 224,
    "stride": 16,
    "class_token": "middle",
    "divide_out": True,
    "bidirectional_layers": False,
    "flip": False,
    "norm_epsilon": 1e-5,
}
_FINE = _MIDDLE | {"stride": 8}
_OLDER = _MIDDLE | {"class_token": "first", "divide_out": False, "rope_residual": True}
_VIDEOMAMBA = _MIDDLE | {"family": "videomamba", "class_token": "first", "divide_out": False}
_SPREAD = _MIDDLE | {"family": "mamba-reg", "class_token": "spread"}
_EMA = "the published accuracy, 81.9 %, is said to be that of its EMA weights (weights = model_ema), if it has them"
PATCH, CLASSES = 16, 1000  # of all released models


@dataclass(frozen=True, slots=True)
class Released:
    """A released file, trained on ImageNet-1k; `known` are the fields of VimConfig that no tensor shows."""

    name: str
    repo: str
    file: str
    embed_dim: int
    depth: int
    known: Mapping[str, Any]
    note: str = ""  # for the person who loads it

    @property
    def family(self) -> Family:
        """The family of the model."""
        return cast(Family, self.known["family"])

    @property
    def patches(self) -> int:
        """The number of its patches."""
        return int(((self.known["image_size"] - PATCH) // self.known["stride"] + 1) ** 2)


@dataclass(frozen=True, slots=True)
class Reference:
    """A model repository on the hub, and the file of weights if it is named."""

    repo: str
    revision: str = "main"
    file: str | None = None


def _videomamba(letter: str, name: str, embed_dim: int, depth: int, size: int) -> Released:
    suffix = "" if size == 224 else f"-{size}"
    file = f"videomamba_{letter}16_in1k_res{size}.pth"
    known = _VIDEOMAMBA | {"image_size": size}
    return Released(f"videomamba-{name}{suffix}", "OpenGVLab/VideoMamba", file, embed_dim, depth, known)


def _mamba_reg(name: str, embed_dim: int, depth: int) -> Released:
    return Released(
        f"mambar-{name}", "Wangf3014/Mamba-Reg", f"mambar_{name}_patch16_224.pth", embed_dim, depth, _SPREAD
    )


RELEASED = {
    released.name: released
    for released in (
        Released("vim-tiny", "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", 192, 24, _MIDDLE),
        Released("vim-tiny-plus", "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", 192, 24, _FINE),
        Released("vim-small", "hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", 384, 24, _MIDDLE),
        Released("vim-small-plus", "hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", 384, 24, _FINE),
        Released("vim-base", "hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", 768, 24, _MIDDLE, _EMA),
        Released("vim-tiny-73p1", "hustvl/Vim-tiny", "vim_tiny_73p1.pth", 192, 24, _OLDER),
        *(_videomamba("t", "tiny", 192, 24, size) for size in (224, 448, 576)),
        *(_videomamba("s", "small", 384, 24, size) for size in (224, 448, 576)),
        *(_videomamba("m", "middle", 576, 32, size) for size in (224, 448, 576)),
        _videomamba("b", "base", 768, 24, 224),
        _mamba_reg("small", 384, 24),
        _mamba_reg("base", 768, 24),
        _mamba_reg("large", 1024, 48),
    )
}


def parse(text: str) -> Reference | None:
    """Parse a released model's name, or `owner/name[@revision][:file]`; None for any other text."""
    if text in RELEASED:
        return Reference(RELEASED[text].repo, file=RELEASED[text].file)
    found = _REFERENCE.fullmatch(text)
    return Reference(found[1], found[2] or "main", found[3]) if found else None


def released(repo: str, file: str) -> Released | None:
    """Return the released model in that file, or None."""
    return next((model for model in RELEASED.values() if (model.repo, model.file) == (repo, file)), None)


def by_file(file: str) -> Released | None:
    """Return the released model whose file has this name, or None."""
    return next((model for model in RELEASED.values() if model.file == file), None)


def with_shape(embed_dim: int, depth: int, patches: int | None, classes: int) -> list[Released]:
    """The released models without RoPE and without spread class tokens that have tensors of these shapes."""
    shape = (embed_dim, depth, patches, classes)
    found = [one for one in RELEASED.values() if shape == (one.embed_dim, one.depth, one.patches, CLASSES)]
    return [one for one in found if not one.known.get("rope_residual") and one.known["class_token"] != "spread"]
