"""The same weights at another image size: the position embedding resampled over the grid of patches.

RoPE tables are removed here; they are computed again from the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import VimConfig
from model.errors import ConfigError
from model.loading.fingerprint import BUFFERS
from model.loading.geometry import Size


def at_size(config: VimConfig, tensors: Mapping[str, Tensor], size: Size) -> tuple[VimConfig, dict[str, Tensor]]:
    """Return configuration and tensors for images of `size` (height, width); at the trained size those that are given.

    Raises ConfigError as `check_size`.
    """
    if size == config.image_size:
        return config, dict(tensors)
    check_size(config, size)
    other = config.replace(image_size=size)
    kept = {name: tensor for name, tensor in tensors.items() if name not in BUFFERS}
    return other, kept | ({"pos_embed": resample(kept["pos_embed"], config, other)} if config.pos_embed else {})


def resample(positions: Tensor, old: VimConfig, new: VimConfig) -> Tensor:
    """(1, L, D) on the old grid -> (1, L', D) float32 on the new one, with class tokens moved to their new slots.

    For spread class tokens, which have an embedding of their own, L is the number of patches.

    Bicubic without antialiasing and with half-pixel centres, as the reference resamples its patches. The reference also
    treats slot 0 as the class token's, which is wrong for a middle token (vim/main.py, --finetune; quirk 21). Computed
    in float64, so that the results round to the same float32 on all machines and fingerprints agree.
    """
    if new.grid == old.grid:
        return positions
    (patches, cls_slots), (new_patches, new_cls_slots) = _slots(old), _slots(new)
    grid = positions[:, patches].reshape(1, *old.grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid.double(), size=new.grid, mode="bicubic", align_corners=False, antialias=False)
    moved = torch.empty(1, len(new_patches) + len(new_cls_slots), positions.shape[2])
    moved[:, new_patches] = resized.flatten(2).transpose(1, 2).float()
    moved[:, new_cls_slots] = positions[:, cls_slots].float()
    return moved


def check_size(config: VimConfig, size: Size) -> None:
    """Raise ConfigError, with the nearest sizes that fit, unless whole patches at the model's stride fill `size`."""
    if _is_whole(config, size) and _reason(config, size) is None:
        return
    near = " or ".join(f"{height}x{width}" for height, width in _nearest(config, size))
    raise ConfigError(
        f"image_size {size[0]}x{size[1]} does not fit: "
        + (_reason(config, size) or f"patches of {config.patch_size} px at stride {config.stride} leave a rest")
        + (f"; the nearest sizes that fit: {near}" if near else "")
    )


def _slots(config: VimConfig) -> tuple[list[int], list[int]]:
    """Return the rows of `pos_embed` that belong to patches, and those of class tokens."""
    if config.class_token == "spread":
        return list(range(config.num_patches)), []
    slots = list(config.class_slots)
    return [slot for slot in range(config.seq_len) if slot not in slots], slots


def _is_whole(config: VimConfig, size: Size) -> bool:
    return all(side >= config.patch_size and (side - config.patch_size) % config.stride == 0 for side in size)


def _reason(config: VimConfig, size: Size) -> str | None:
    """Return why the architecture refuses the size, or None; RoPE requires a square with an even number of patches."""
    try:
        config.replace(image_size=size)
    except ConfigError as error:
        return str(error)
    return None


def _nearest(config: VimConfig, size: Size) -> list[Size]:
    below = (_steps(config, size, step) for step in (0, -1))
    above = (_steps(config, size, step) for step in (1, 2))
    found = [next((near for near in side if _reason(config, near) is None), None) for side in (below, above)]
    return [near for near in dict.fromkeys(found) if near is not None]


def _steps(config: VimConfig, size: Size, step: int) -> Size:
    """Round each side down to whole patches, then add `step` patches."""
    patch, stride = config.patch_size, config.stride
    height, width = (max(patch, patch + ((side - patch) // stride + step) * stride) for side in size)
    return height, width
