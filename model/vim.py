"""Vision Mamba as a torch module, equal to the reference (hustvl/Vim, vim/models_mamba.py, VisionMamba.forward).

This module has the architecture only: `model.loading.load` reads weights, `model.runtime.runner` chooses devices and
batch sizes. "Quirk n" is a number in the list of the reference's unexpected behaviours; they are kept because trained
weights depend on them.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VimConfig
from model.mixer import Mixer
from model.rope import Rope
from model.scan import ScanChoice, ScanFn, choose

if TYPE_CHECKING:
    from model.heads.domain import Domain
    from model.labels import Labels
    from model.preprocessing.recipe import Preprocess

# All layers and the final norm as one function: tokens (B, L, D) -> tokens (B, L, D) in the same dtype.
EncoderFn = Callable[[Tensor], Tensor]

log = logging.getLogger("vim.model")

DIFFERENTIABLE = "reference"  # the scan that torch can differentiate
_RECURRENCE = ("A_log", "A_b_log", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias")
_KEEP_WIDE = (
    *_RECURRENCE,
    *(f"{norm}.{part}" for norm in ("norm", "norm_f", "norm_neck") for part in ("weight", "bias")),
)


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis of `width` values, by the configuration's `norm`."""

    def __init__(self, config: VimConfig, width: int) -> None:
        super().__init__()
        self.eps = config.norm_epsilon
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if config.norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        if self.bias is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class PatchEmbed(nn.Module):
    """Patch embedding: image (B, C, H, W) -> patch tokens (B, M, D), row by row."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.embed_dim, config.patch_size, stride=config.stride)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M, D)."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class Layer(nn.Module):
    """One layer: add, norm, mixer. Returns the mixer output and the residual stream that entered the norm."""

    def __init__(self, config: VimConfig, scan: ScanFn) -> None:
        super().__init__()
        self.mixer = Mixer(config, scan)
        self.norm = Norm(config, config.embed_dim)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L, D) and (B, L, D), or None for the first layer -> two tensors (B, L, D)."""
        residual = _widened(hidden) if residual is None else residual + hidden
        mixed: Tensor = self.mixer(self.norm(residual).to(hidden.dtype))
        return mixed, residual


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Vim(nn.Module):
    """Vision Mamba. Images are float (B, C, H, W), already normalised; parameters are uninitialised.

    `model.loading.load.load` also sets the attributes below; a bare `Vim(config, scan)` has the defaults.
    """

    preprocess: Preprocess
    labels: Labels
    fingerprint: str = ""
    assumptions: tuple[str, ...] = ()
    domain: Domain | None = None
    scan_choice: ScanChoice | None = None
    encoder: EncoderFn | None = None  # replaces `encode` if set, by `model.backends.fusion`

    def __init__(self, config: VimConfig, scan: ScanFn) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.patch_embed = PatchEmbed(config)
        if config.class_token == "double":
            self.cls_token_head = nn.Parameter(torch.empty(1, 1, width))
            self.cls_token_tail = nn.Parameter(torch.empty(1, 1, width))
        elif config.class_token != "none":
            self.cls_token = nn.Parameter(torch.empty(1, config.num_class_tokens, width))
        if config.pos_embed and config.class_token == "spread":
            self.pos_embed = nn.Parameter(torch.empty(1, config.num_patches, width))
            self.pos_embed_cls = nn.Parameter(torch.empty(1, config.spread_tokens, width))
        elif config.pos_embed:
            self.pos_embed = nn.Parameter(torch.empty(1, config.seq_len, width))
        if config.rope:
            self.rope = Rope(config)
        self.layers = nn.ModuleList(Layer(config, scan) for _ in range(config.depth))
        self.norm_f = Norm(config, width)
        if config.neck_reduction > 1:
            self.neck = nn.Linear(width, width // config.neck_reduction, bias=False)
            self.norm_neck = Norm(config, config.feature_dim)
        self.head = nn.Linear(config.feature_dim, config.num_classes) if config.num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes); with pool 'all' (B, L, classes); without classes the features."""
        return self.forward_head(self.forward_features(images))

    def forward_head(self, features: Tensor) -> Tensor:
        """Features of `forward_features` -> logits. With pool 'max' each logit is the maximum over the tokens."""
        logits: Tensor = self.head(features)
        return logits.amax(dim=1) if self.config.pool == "max" else logits

    def scores(self, features: Tensor) -> Tensor:
        """Features of `forward_features` -> float32 scores of the classes, by the configuration's `score_function`."""
        logits = self.forward_head(features).float()
        return logits.sigmoid() if self.config.score_function == "sigmoid" else logits.softmax(-1)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the input of the head: (B, `config.feature_dim`).

        For the token-wise pools 'max' and 'all' it has a row for each token, (B, L, D) (quirk 9).
        """
        return self.pool(self.forward_tokens(images))

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens after the final norm (B, L, D) -> the input of the head, as `forward_features` returns it.

        Quirk 7: a flipped sequence is read at the unflipped slots, where the class token need not be.
        """
        if self.config.pool == "cls":
            # Slices, because a list of indices is copied from the host, which a CUDA graph cannot record.
            slots = self.config.class_slots
            if len(slots) == 1 and self.config.class_token != "spread":
                return tokens[:, slots[0]]
            found = torch.stack([tokens[:, slot] for slot in slots], dim=1)
            return self._side_by_side(found) if self.config.class_token == "spread" else found.mean(dim=1)
        if self.config.pool == "last":
            return tokens[:, -1]
        return tokens.mean(dim=1) if self.config.pool == "mean" else tokens

    def _side_by_side(self, tokens: Tensor) -> Tensor:
        """Spread class tokens (B, n, D) -> (B, n * D / neck_reduction) (Mamba-Reg, models_mamba.py)."""
        if self.config.neck_reduction == 1:
            return tokens.flatten(1)
        features: Tensor = self.norm_neck(_widened(self.neck(tokens).flatten(1)))
        return features.to(tokens.dtype)

    def mean_of_patches(self, tokens: Tensor) -> Tensor:
        """Tokens after the final norm (B, L, D) -> mean over the patch tokens (B, D), at least float32."""
        slots = self.config.class_slots
        if self.config.flip:
            slots = tuple(self.config.seq_len - 1 - slot for slot in slots)
        edges = [-1, *sorted(slots), self.config.seq_len]
        patches = [tokens[:, before + 1 : after] for before, after in itertools.pairwise(edges)]
        wide = torch.promote_types(tokens.dtype, torch.float32)
        return torch.cat(patches, dim=1).mean(dim=1, dtype=wide)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Return all tokens (B, L, D) after the final norm, in the order in which the layers processed them.

        Raises ValueError for images of another shape than the configuration's.
        """
        return self._encoded(self.embed(images))

    def forward_patches(self, patches: Tensor) -> Tensor:
        """The same as `forward_tokens`, from patch tokens (B, M, D) as `patch_embed` returns them."""
        return self._encoded(self._with_positions(patches))

    def _encoded(self, tokens: Tensor) -> Tensor:
        self._check_encoder(tokens)
        return self.encode(tokens) if self.encoder is None else self.encoder(tokens)

    def encode(self, tokens: Tensor) -> Tensor:
        """All layers and the final norm, composed of torch, convolution and scan: (B, L, D) -> (B, L, D)."""
        hidden, residual = self._run_pairs(tokens) if self.config.bidirectional_layers else self._run(tokens)
        # With `bidirectional_layers` and a depth below two no layer has run, and there is no residual.
        final: Tensor = self.norm_f(_widened(hidden) if residual is None else residual + hidden)
        return final.to(tokens.dtype)

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> the tokens that enter the first layer (B, L, D).

        Raises ValueError for images of another shape than the configuration's.
        """
        _check_images(images, self.config)
        return self._with_positions(self.patch_embed(images))

    def _with_positions(self, patches: Tensor) -> Tensor:
        if self.config.class_token == "spread":
            tokens = self._spread_class_tokens(patches)
        else:
            tokens = self._insert_class_tokens(patches)
            if self.config.pos_embed:
                tokens = tokens + self.pos_embed
        return tokens.flip(1) if self.config.flip else tokens

    def _insert_class_tokens(self, patches: Tensor) -> Tensor:
        if self.config.class_token == "none":
            return patches
        images = patches.shape[0]
        if self.config.class_token == "double":
            head, tail = (t.expand(images, -1, -1) for t in (self.cls_token_head, self.cls_token_tail))
            return torch.cat((head, patches, tail), dim=1)
        (slot,) = self.config.class_slots
        return torch.cat((patches[:, :slot], self.cls_token.expand(images, -1, -1), patches[:, slot:]), dim=1)

    def _spread_class_tokens(self, patches: Tensor) -> Tensor:
        """Patches (B, M, D) -> n groups of patches, each followed by its class token, and the rest (B, M + n, D)."""
        cls_tokens: Tensor = self.cls_token
        if self.config.pos_embed:
            patches, cls_tokens = patches + self.pos_embed, cls_tokens + self.pos_embed_cls
        count, group = self.config.spread_tokens, self.config.class_slots[0]
        groups = patches[:, : count * group].reshape(-1, count, group, patches.shape[2])  # (B, n, group, D)
        ends = cls_tokens[:, :, None].expand(patches.shape[0], -1, -1, -1)  # (B, n, 1, D)
        return torch.cat((torch.cat((groups, ends), dim=2).flatten(1, 2), patches[:, count * group :]), dim=1)

    def _run(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        residual = None
        for layer in self.layers:
            if self.config.rope:
                hidden = self._rope_unflipped(hidden)
                if self.config.rope_residual and residual is not None:
                    residual = self._rope_unflipped(residual)
            hidden, residual = layer(hidden, residual)
        return hidden, residual

    def _rope_unflipped(self, x: Tensor) -> Tensor:
        rotated: Tensor = self.rope(x.flip(1)).flip(1) if self.config.flip else self.rope(x)
        return rotated

    def _run_pairs(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run layers in pairs: even layers forward, odd layers backward.

        As in the reference the residual doubles at every pair, RoPE is not un-flipped, and the last layer of an odd
        depth never runs.
        """
        residual: Tensor | None = None
        for forward, backward in zip(self.layers[0::2], self.layers[1::2], strict=False):
            if self.config.rope:
                hidden = self.rope(hidden)
                if self.config.rope_residual and residual is not None:
                    residual = self.rope(residual)
            ahead, ahead_residual = forward(hidden, residual)
            back, back_residual = backward(hidden.flip(1), None if residual is None else residual.flip(1))
            hidden, residual = ahead + back.flip(1), ahead_residual + back_residual.flip(1)
        return hidden, residual

    # --- scan and fused layers; what they were prepared from may change -----------------------------------------

    def use_encoder(self, encoder: EncoderFn) -> None:
        """Use fused layers, which hold copies of the weights, until a weight changes or a gradient is required."""
        self.encoder = encoder
        self._made_from = [(weight, weight._version) for weight in self.parameters() if not weight.is_inference()]

    def _check_encoder(self, tokens: Tensor) -> None:
        """Compose the layers if the fused ones were made from other weights, or if a gradient is required."""
        choice = self.scan_choice
        if choice is None:
            return
        if torch.is_grad_enabled() and choice.name != DIFFERENTIABLE and self._wants_gradient(tokens):
            self._compose(choose(DIFFERENTIABLE, tokens.device), "a gradient was required")
        elif self.encoder is not None and any(weight._version != version for weight, version in self._made_from):
            self._compose(choice, "weights were changed after loading")

    def _wants_gradient(self, tokens: Tensor) -> bool:
        return tokens.requires_grad or any(weight.requires_grad for weight in self.parameters())

    def _compose(self, choice: ScanChoice, why: str) -> None:
        log.info("layers are composed from now on, with scan %s: %s", choice.name, why)
        self.use_scan(dataclasses.replace(choice, path=f"composed: {why}"))

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """As torch's; fused layers of a loaded model are dropped."""
        loaded = super().load_state_dict(*arguments, **keywords)
        if self.encoder is not None and self.scan_choice is not None:
            self._compose(self.scan_choice, "weights were changed after loading")
        return loaded

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Vim:
        """Torch calls it in `.to`, `.half`, `.double`, `.cuda`: a converted model is composed, on a scan for any dtype.

        Parameters of recurrence and norms stay at least float32, as `cast` keeps them.
        """
        before = self._kind()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scan_choice is not None and self._kind() != before:
            self.cast(self.patch_embed.proj.weight.dtype)
            self._compose(choose("torch", self.norm_f.weight.device), "the model was converted or moved after loading")
        return self

    def _kind(self) -> tuple[torch.dtype, torch.device]:
        weight = self.patch_embed.proj.weight
        return weight.dtype, weight.device

    def use_scan(self, choice: ScanChoice) -> None:
        """Use another scan and its convolution in every layer, composed; `model.backends.fusion` fuses layers."""
        self.scan_choice, self.encoder = choice, None
        for layer in self.layers:
            layer.mixer.conv, layer.mixer.scan = choice.conv, choice.fn  # type: ignore[union-attr]

    def cast(self, dtype: torch.dtype) -> Vim:
        """Convert to `dtype` in place and return self; parameters of recurrence and norms stay at least float32."""
        wide = torch.promote_types(dtype, torch.float32)
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(wide if name.endswith(_KEEP_WIDE) else dtype)
        for buffer in self.buffers():
            buffer.data = buffer.data.to(wide)
        return self


def _check_images(images: Tensor, config: VimConfig) -> None:
    expected = (config.channels, *config.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(f"images must have shape (B, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
