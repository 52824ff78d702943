"""Names of tensors in files -> names of this model: prefixes are removed, heads renamed, counters left out.

Names also show what a file holds that is not one whole model of the three families.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

ANCHOR = "patch_embed.proj.weight"  # every model of these families has it
# Of averaged models, of batch norms around the model, and of the profiler thop.
_COUNTER = re.compile(r"(.*\.)?(n_averaged|num_batches_tracked|total_ops|total_params)")
_HEAD = re.compile(r"(head\.\d+|fc|classifier)\.weight")
_VIDEO = "a video model of VideoMamba: only its image models are supported"
# Kind -> parts of names, of which one is enough.
_KINDS = {
    "LoRA adapters: merge them into their base model": ("lora_A", "lora_B", "lora_down", "lora_up"),
    _VIDEO: ("temporal_pos_embed",),
    "a distilled model with two heads: not supported": ("head_dist.", "dist_token"),
    "a model of masked pre-training, without classes: save its encoder alone": ("mask_token", "decoder_blocks."),
    "a model for detection or segmentation: save its backbone alone": ("decode_head.", "rpn_head.", "roi_head."),
    "a transformer": (".attn.qkv.", ".self_attn.", ".attention."),
    "a convolutional network": ("layer1.0.conv1.", "features.0."),
}


def usual(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors under their usual names, and one sentence for each change. Never raises.

    What is not recognised keeps its name; `model.loading.fit` reports it.
    """
    kept, counters = counted(tensors)
    notes = [f"left out {len(counters)} counters, such as {counters[0]}"] if counters else []
    if prefix := _prefix(kept):
        kept = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
        notes.append(f"every name without its prefix {prefix!r}")
    return _with_head(kept, notes), tuple(notes)


def counted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without counters, and the names of the counters."""
    counters = [name for name in tensors if _COUNTER.fullmatch(name)]
    return {name: tensor for name, tensor in tensors.items() if name not in counters}, counters


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    """Return the prefix of all names; empty if only some names have it."""
    found = [name.removesuffix(ANCHOR) for name in tensors if name.endswith(ANCHOR)]
    if len(found) != 1 or not found[0].endswith("."):
        return ""
    return found[0] if all(name.startswith(found[0]) for name in tensors) else ""


def _with_head(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Rename the only linear layer that can be the head; add the bias of a head that has none."""
    roots = [name.removesuffix(".weight") for name in tensors if _HEAD.fullmatch(name)]
    if "head.weight" not in tensors and len(roots) == 1 and tensors[f"{roots[0]}.weight"].ndim == 2:
        root = roots[0]
        tensors = {
            f"head.{name.removeprefix(f'{root}.')}" if name.startswith(f"{root}.") else name: tensor
            for name, tensor in tensors.items()
        }
        notes.append(f"{root} is the head")
    head = tensors.get("head.weight")
    if head is not None and head.ndim == 2 and "head.bias" not in tensors:
        tensors = tensors | {"head.bias": torch.zeros(head.shape[0])}
        notes.append("the head has no bias: zeros")
    return tensors


def verdict(tensors: Mapping[str, Tensor]) -> str | None:
    """Describe tensors of another kind of model; None for those of an image model, and for unknown ones."""
    anchor = tensors.get(ANCHOR)
    if anchor is not None and anchor.ndim == 5:
        return _VIDEO
    found = (kind for kind, parts in _KINDS.items() for name in tensors if any(part in name for part in parts))
    return next(found, None)
