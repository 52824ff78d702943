"""Model names that are not paths: the released models, and references to the hub.

This module only parses names: `model.loading.hub` downloads, `model.loading.source` decides what a name means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GRAMMAR = "owner/name[@revision][:file]"
_REFERENCE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([^@:]+))?(?::([^:]+))?")
_MIDDLE: dict[str, Any] = {
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


@dataclass(frozen=True, slots=True)
class Released:
    """One of hustvl/Vim's files, trained on ImageNet-1k; `known` are the fields of VimConfig that no tensor shows."""

    name: str
    repo: str
    file: str
    known: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reference:
    """A model repository on the hub, and the file of weights if it is named."""

    repo: str
    revision: str = "main"
    file: str | None = None


RELEASED = {
    released.name: released
    for released in (
        Released("vim-tiny", "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", _MIDDLE),
        Released("vim-tiny-plus", "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", _FINE),
        Released("vim-small", "hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", _MIDDLE),
        Released("vim-small-plus", "hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", _FINE),
        Released("vim-base", "hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", _MIDDLE),
        Released("vim-tiny-73p1", "hustvl/Vim-tiny", "vim_tiny_73p1.pth", _OLDER),
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
