"""Hints about a file of weights that are not in its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.config import Family


@dataclass(frozen=True, slots=True)
class Hints:
    """Hints from a training run's arguments, and the `known` fields of a released model. Tensors override hints."""

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
        """The family if the factory's name begins with one; other programs may use any names."""
        starts: dict[str, Family] = {"vim_": "vim", "videomamba": "videomamba", "mambar_": "mamba-reg"}
        return next((family for start, family in starts.items() if self.name.startswith(start)), None)

    @property
    def class_token(self) -> str | None:
        """The class token's position if the name says middle or first; many names only say that there is a token."""
        found = re.search(r"(mid|first)(dle)?_?cls", self.name)
        return {"mid": "middle", "first": "first"}[found[1]] if found else None

    @property
    def divide_out(self) -> bool | None:
        """True if the name contains `div2`; other names do not show it."""
        return True if "div2" in self.name else None
