"""What a file holds that is not one whole ViM or VideoMamba for images: a sentence for the person who chose it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from model.loading.names import ANCHOR

VIDEO = "a video model of VideoMamba: only its image models are supported"
# Kind -> parts of names, of which one is enough.
_KINDS = {
    "LoRA adapters: merge them into their base model": ("lora_A", "lora_B", "lora_down", "lora_up"),
    "a Mamba-Reg (class tokens spread through the sequence): not supported": ("pos_embed_cls", "norm_neck."),
    VIDEO: ("temporal_pos_embed",),
    "a distilled model with two heads: not supported": ("head_dist.", "dist_token"),
    "a model of masked pre-training, without classes: save its encoder alone": ("mask_token", "decoder_blocks."),
    "a model for detection or segmentation: save its backbone alone": ("decode_head.", "rpn_head.", "roi_head."),
    "a transformer": (".attn.qkv.", ".self_attn.", ".attention."),
    "a convolutional network": ("layer1.0.conv1.", "features.0."),
}


def verdict(tensors: Mapping[str, Tensor]) -> str | None:
    """Say what the tensors are instead; None for those of an image model, and for unknown ones."""
    anchor = tensors.get(ANCHOR)
    if anchor is not None and anchor.ndim == 5:
        return VIDEO
    found = (kind for kind, parts in _KINDS.items() for name in tensors if any(part in name for part in parts))
    return next(found, None)
