"""The layout of a batch's rows in one float32 tensor, so that a single copy transfers them to the host."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config import VimConfig
from model.runtime.pixel_model import PARTS, Part
from model.runtime.runner import Array, Rows, finite_rows


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Columns of a row: the parts in the order of PARTS. A model without classes has no scores."""

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
        return sum(self.widths.values())

    def pack(self, parts: Mapping[Part, Tensor], out: Tensor) -> None:
        """Write float32 parts (n, width), all that the model has, to rows (n, columns)."""
        torch.cat([parts[part] for part in self.widths], dim=1, out=out)

    def unpack(self, packed: Array, wanted: Collection[Part]) -> Rows:
        """Rows (n, columns) -> the wanted parts, as views; a row counts as finite if its wanted parts are finite."""
        ends = np.cumsum([*self.widths.values()])
        found = dict(zip(self.widths, np.split(packed, ends[:-1], axis=1), strict=True))
        scores, cls, mean = (found[part] if part in wanted else None for part in PARTS)
        return Rows(scores, cls, mean, finite_rows((scores, cls, mean)))
