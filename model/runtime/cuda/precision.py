"""The precision of the weights: the narrowest that agrees with float32 on this model, measured at start-up.

float16 is tried before bfloat16: it is equally fast and eight times finer, but its range ends at 65,504, which a
trained model may exceed. The residual stream, the recurrence and the norms stay float32 in both (`Vim.cast`).
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.backends.fusion import fuse_verified
from model.backends.selftest import choose_verified
from model.config import VimConfig
from model.errors import ScanError
from model.vim import Vim

log = logging.getLogger("vim.model")

IMAGES = 8
# Candidates, and the smallest cosine between their features and float32's that counts as agreement.
COSINE = {torch.float16: 0.9999, torch.bfloat16: 0.999}
# If float32's two best logits differ by less than this fraction of its range of logits, either may be the top class.
TIE = 0.01


@dataclass(frozen=True, slots=True)
class Precision:
    """The model in the chosen dtype, its scan verified and its layers fused, and the reason for that dtype."""

    vim: Vim
    why: str


def choose_precision(vim: Vim, scan: str) -> Precision:
    """Return the first candidate that agrees with `vim`, which is float32 on its device, else `vim` itself.

    Raises ScanError if no scan is right in float32.
    """
    device = vim.patch_embed.proj.weight.device
    exact = in_precision(vim, scan, torch.float32)
    images = example(vim.config).to(device)
    expected = _outputs(exact, images)
    passed_over = []
    for dtype, least in COSINE.items():
        name = str(dtype).removeprefix("torch.")
        try:
            candidate = in_precision(_copy(vim), scan, dtype)
        except ScanError as error:
            passed_over.append(f"{name}: {error}")
            continue
        complaint, agreement = compare(expected, _outputs(candidate, images), least)
        log.info("%s: %s", name, complaint or agreement)
        if complaint is None:
            return Precision(candidate, "; ".join([f"{name} {agreement}", *passed_over]))
        passed_over.append(f"{name}: {complaint}")
    return Precision(exact, "; ".join(passed_over))


def in_precision(vim: Vim, scan: str, dtype: torch.dtype) -> Vim:
    """Convert a model to `dtype` in place, on a verified scan, with fused layers if possible. Raises ScanError."""
    device = vim.patch_embed.proj.weight.device
    vim.cast(dtype).use_scan(choose_verified(scan, vim.config, device, dtype))
    fuse_verified(vim)
    return vim


def compare(expected: list[Tensor], found: list[Tensor], least: float) -> tuple[str | None, str]:
    """Compare (features, logits) with float32's; returns what is wrong, or None, and a description of the agreement."""
    if not all(bool(x.isfinite().all()) for x in found):
        return "gives values that are not finite", ""
    cosine = float(F.cosine_similarity(expected[0].double(), found[0].double(), dim=-1).min())
    agreement = f"agrees with float32: least cosine {cosine:.6f} over {len(found[0])} images"
    if cosine < least:
        return f"cosine with float32 only {cosine:.6f}, {least} is wanted", agreement
    if len(expected) > 1 and not _same_top(expected[1].float(), found[1].float()):
        return "another class comes first than in float32", agreement
    return None, agreement


def _same_top(expected: Tensor, found: Tensor) -> bool:
    """Return whether the top class is float32's top class too, or tied with it."""
    chosen = expected.gather(-1, found.argmax(-1, keepdim=True))[:, 0]
    span = expected.amax(-1) - expected.amin(-1)
    return bool((expected.amax(-1) - chosen <= TIE * span).all())


def example(config: VimConfig) -> Tensor:
    """Return seeded, normalised images (n, C, H, W) from fine noise to large patches of colour."""
    generator = torch.Generator().manual_seed(0)
    height, width = config.image_size
    images = []
    for index in range(IMAGES):
        cells = max(2, min(height, width) >> index)
        coarse = torch.randn(1, config.channels, cells, cells, generator=generator)
        images.append(F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False))
    return torch.cat(images)


@torch.inference_mode()
def _outputs(vim: Vim, images: Tensor) -> list[Tensor]:
    """Return features (n, D) and, with a head, logits (n, classes), float32 on the CPU; one image at a time."""
    dtype = vim.patch_embed.proj.weight.dtype
    features = [vim.forward_features(image[None].to(dtype)) for image in images]
    parts = [features, [vim.forward_head(f) for f in features]] if vim.config.num_classes else [features]
    return [torch.cat(part).float().cpu() for part in parts]


def _copy(vim: Vim) -> Vim:
    """Return another model with the same weights; fused layers, which hold copies of weights, are dropped."""
    vim.encoder = None
    return copy.deepcopy(vim)
