"""The precision of the weights: the narrowest that agrees with float32 on this model, measured at start-up.

float16 is tried before bfloat16: it is equally fast and eight times finer, but its range ends at 65,504, which a
trained model may exceed. It is used only if float32's own activations leave a factor of `HEADROOM`. The residual
stream, the recurrence and the norms stay float32 in both (`Vim.cast`).
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
from model.errors import ScanError
from model.runtime.cuda.calibration import calibration_pixels
from model.runtime.cuda.margins import Peaks, as_text, peaks
from model.runtime.pixel_model import PixelModel
from model.vim import Vim

log = logging.getLogger("vim.model")

# Candidates, and the smallest cosine between their features and float32's that counts as agreement.
COSINE = {torch.float16: 0.9999, torch.bfloat16: 0.999}
HEADROOM = 8.0
# If float32's two best logits differ by less than this fraction of its range of logits, either may be the top class.
TIE = 0.01


@dataclass(frozen=True, slots=True)
class Precision:
    """The model in the chosen dtype, its scan verified and its layers fused, and the reason for that dtype."""

    vim: Vim
    why: str
    exact: Vim | None = None  # in float32, if the dtype is float16: for images that overflow
    margins: str = ""  # of every layer, see `model.runtime.cuda.margins`


def choose_precision(vim: Vim, scan: str) -> Precision:
    """Return the first candidate that agrees with `vim`, which is float32 on its device, else `vim` itself.

    Raises ScanError if no scan is right in float32.
    """
    exact = in_precision(vim, scan, torch.float32)
    pixels = calibration_pixels(vim.preprocess).to(vim.patch_embed.proj.weight.device)
    found = peaks(exact, pixels)
    expected = _outputs(exact, pixels)
    passed_over: list[str] = []
    for dtype, least in COSINE.items():
        name = str(dtype).removeprefix("torch.")
        candidate, complaint = _candidate(vim, scan, dtype, found)
        if candidate is not None:
            complaint, agreement = compare(expected, _outputs(candidate, pixels), least)
            log.info("%s: %s", name, complaint or agreement)
            if complaint is None:
                why = "; ".join([f"{name} {agreement}", *passed_over])
                return Precision(candidate, why, exact if dtype == torch.float16 else None, as_text(found))
        passed_over.append(f"{name}: {complaint}")
    return Precision(exact, "; ".join(passed_over), margins=as_text(found))


def _candidate(vim: Vim, scan: str, dtype: torch.dtype, found: list[Peaks]) -> tuple[Vim | None, str | None]:
    """Return a copy of the model in `dtype`, or None and the reason against it."""
    largest = max(layer.largest for layer in found) if found else 0.0
    if largest * HEADROOM > torch.finfo(dtype).max:
        return None, f"float32's activations reach {largest:.3g}; a factor of {HEADROOM:g} is required below its range"
    try:
        return in_precision(_copy(vim), scan, dtype), None
    except ScanError as error:
        return None, str(error)


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
        return f"cosine with float32 only {cosine:.6f}, {least} is required", agreement
    if len(expected) > 1 and not _same_top(expected[1].float(), found[1].float()):
        return "another class comes first than in float32", agreement
    return None, agreement


def _same_top(expected: Tensor, found: Tensor) -> bool:
    """Return whether the top class is float32's top class too, or tied with it."""
    chosen = expected.gather(-1, found.argmax(-1, keepdim=True))[:, 0]
    span = expected.amax(-1) - expected.amin(-1)
    return bool((expected.amax(-1) - chosen <= TIE * span).all())


@torch.inference_mode()
def _outputs(vim: Vim, pixels: Tensor) -> list[Tensor]:
    """Return features and, with a head, logits (n, width), float32 on the CPU; one image at a time."""
    model, dtype = PixelModel(vim, narrow=True), vim.patch_embed.proj.weight.dtype
    features = [model.parts(image[None], ["cls"])["cls"] for image in pixels]
    logits = [vim.forward_head(row.to(dtype)) for row in features] if vim.config.num_classes else []
    return [torch.cat(part).float().cpu() for part in (features, logits) if part]


def _copy(vim: Vim) -> Vim:
    """Return another model with the same weights, without fused layers, which hold copies of weights."""
    encoder, vim.encoder = vim.encoder, None
    try:
        return copy.deepcopy(vim)
    finally:
        vim.encoder = encoder
