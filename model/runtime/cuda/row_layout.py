"""How the rows of a batch stand in one float32 tensor, so that they leave the device in one copy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config import VimConfig
from model.runtime.pixel_model import PARTS, Part
from model.runtime.runner import Array, Rows


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Columns of a row: the parts in the order of PARTS, then for each part a flag, 1 where all its values are finite.

    A model without classes has no scores.
    """

    widths: Mapping[Part, int]

    @staticmethod
    def of(config: VimConfig) -> RowLayout:
        """Return the layout for a model's answers."""
        widths = dict(zip(PARTS, (config.num_classes, config.feature_dim, config.embed_dim), strict=True))
        return RowLayout({part: width for part, width in widths.items() if width})

    @property
    def parts(self) -> list[Part]:
        """The parts that the model has."""
        return list(self.widths)

    @property
    def columns(self) -> int:
        """The number of columns."""
        return sum(self.widths.values()) + len(self.widths)

    def pack(self, parts: Mapping[Part, Tensor]) -> Tensor:
        """Float32 parts (n, width), all that the model has -> rows (n, columns)."""
        rows = [parts[part] for part in self.widths]
        finite = [part.isfinite().all(dim=1, keepdim=True).float() for part in rows]
        return torch.cat([*rows, *finite], dim=1)

    def unpack(self, packed: Array, wanted: Collection[Part]) -> Rows:
        """Rows (n, columns) -> the wanted parts, views of the rows; a row is finite if these parts of it are."""
        ends = np.cumsum([*self.widths.values()])
        found = dict(zip(self.widths, np.split(packed[:, : ends[-1]], ends[:-1], axis=1), strict=True))
        flags = dict(zip(self.widths, packed[:, ends[-1] :].T > 0, strict=True))
        scores, cls, mean = (found[part] if part in wanted else None for part in PARTS)
        return Rows(scores, cls, mean, np.logical_and.reduce([flags[part] for part in wanted]))
