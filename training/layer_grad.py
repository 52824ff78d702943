"""One Vim layer as a single differentiable function, for training on a CPU: add, norm, mixer, with its own gradient.

The arithmetic is that of `model.vim.Layer` with the v2 mixer; matrix products may run in bfloat16, which is twice as
fast where the processor supports it. It is one node in autograd's graph instead of about fifty, copies no strided
halves, and makes few calls through the interpreter.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.vim import Layer
from training.conv_grad import conv_backward, conv_forward
from training.scan_grad import scan_backward, scan_forward

_NAMES = (
    "norm.weight", "mixer.in_proj.weight", "mixer.out_proj.weight",
    "mixer.conv1d.weight", "mixer.conv1d.bias", "mixer.conv1d_b.weight", "mixer.conv1d_b.bias",
    "mixer.x_proj.weight", "mixer.x_proj_b.weight", "mixer.dt_proj.weight", "mixer.dt_proj_b.weight",
    "mixer.dt_proj.bias", "mixer.dt_proj_b.bias", "mixer.A_log", "mixer.A_b_log", "mixer.D", "mixer.D_b",
)  # fmt: skip


class Settings(NamedTuple):
    """Arguments that are not tensors: the norm's epsilon, whether to halve the output, the dtype of products."""

    epsilon: float
    halve: bool
    product: torch.dtype


def layer_step(layer: Layer, hidden: Tensor, residual: Tensor, product: torch.dtype) -> tuple[Tensor, Tensor]:
    """(B, L, D), (B, L, D) -> (mixer output, residual stream), float32, as `Layer.forward`."""
    settings = Settings(layer.norm.eps, layer.mixer.halve, product)
    weights = [layer.get_parameter(name) for name in _NAMES]
    return cast("tuple[Tensor, Tensor]", _Step.apply(settings, hidden, residual, *weights))  # type: ignore[no-untyped-call]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, hidden: Tensor, residual: Tensor, *weights: Tensor) -> Any:
        """Run the layer and save the tensors that the gradient needs."""
        ctx.settings = settings
        (
            norm,
            w_in,
            w_out,
            kernel,
            conv_bias,
            kernel_b,
            conv_bias_b,
            w_x,
            w_xb,
            w_dt,
            w_dtb,
            bias,
            bias_b,
            a,
            a_b,
            d,
            d_b,
        ) = weights
        rows, wide = hidden.shape[0] * hidden.shape[1], w_in.shape[0] // 2
        low = settings.product
        stream = residual + hidden
        scale = (stream.square().mean(-1, keepdim=True) + settings.epsilon).rsqrt()
        normed = (stream * scale * norm).view(rows, -1).to(low)
        w_in = w_in.to(low)
        x = (normed @ w_in[:wide].t()).float().view(*hidden.shape[:2], wide)
        z = (normed @ w_in[wide:].t()).float().view_as(x)
        kernel = torch.stack((kernel[:, 0].t(), kernel_b[:, 0].t()))
        conv_bias = torch.stack((conv_bias, conv_bias_b))
        u = conv_forward(x, kernel, conv_bias)
        w_x = torch.stack((w_x, w_xb)).to(low)
        parts = torch.bmm(u.view(2, rows, wide).to(low), w_x.transpose(1, 2)).float()
        states = a.shape[1]
        rank = parts.shape[-1] - 2 * states
        w_dt = torch.stack((w_dt, w_dtb))
        delta = torch.bmm(parts[..., :rank], w_dt.transpose(1, 2)).view_as(u)
        B, C = (parts[..., at : at + states].reshape(2, *x.shape[:2], states) for at in (rank, rank + states))
        decay = -torch.stack((a, a_b)).exp()
        inputs = (u, delta, decay, B, C, torch.stack((d, d_b)), z, torch.stack((bias, bias_b)))
        summed, gated = scan_forward(*inputs)
        gated = gated.view(rows, wide).to(low)
        w_out = (w_out / 2 if settings.halve else w_out).to(low)
        mixed = (gated @ w_out.t()).float().view_as(hidden)
        ctx.save_for_backward(stream, scale, norm, normed, w_in, x, kernel, conv_bias, w_x, parts, w_dt, *inputs,
                              summed, gated, w_out)  # fmt: skip
        return mixed, stream

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor, d_stream: Tensor) -> tuple[Any, ...]:
        """Return gradients in the order of the arguments."""
        (
            stream,
            scale,
            norm,
            normed,
            w_in,
            x,
            kernel,
            conv_bias,
            w_x,
            parts,
            w_dt,
            *inputs,
            summed,
            gated,
            w_out,
        ) = ctx.saved_tensors
        low = ctx.settings.product
        u, decay, rank = inputs[0], inputs[2], w_dt.shape[-1]
        rows, wide = gated.shape
        d_mixed = d_mixed.reshape(rows, -1).to(low)
        d_gated = (d_mixed @ w_out).float().view_as(x)
        d_out = (d_mixed.t() @ gated).float()
        du, d_delta, d_decay, dB, dC, d_skip, dz, d_bias = scan_backward(*(*inputs, summed, d_gated))
        d_delta = d_delta.view(2, rows, wide)
        d_parts = torch.cat((d_delta @ w_dt, dB.view(2, rows, -1), dC.view(2, rows, -1)), dim=-1).to(low)
        d_dt = torch.bmm(d_delta.transpose(1, 2), parts[..., :rank])
        du += torch.bmm(d_parts, w_x).view_as(u)
        d_x_proj = torch.bmm(d_parts.transpose(1, 2), u.view(2, rows, wide).to(low)).float()
        dx, d_kernel, d_conv_bias = conv_backward(x, kernel, conv_bias, du)
        dx, dz = dx.view(rows, wide).to(low), dz.view(rows, wide).to(low)
        d_normed = (dx @ w_in[:wide]).float() + (dz @ w_in[wide:]).float()
        d_in = torch.cat((dx.t() @ normed, dz.t() @ normed)).float()
        unit = stream * scale
        d_unit = d_normed.view_as(stream)
        d_norm = (d_unit * unit).sum((0, 1))
        d_unit = d_unit * norm
        d_stream = d_stream + scale * (d_unit - unit * (d_unit * unit).mean(-1, keepdim=True))
        d_log = d_decay * decay
        d_kernel = d_kernel.transpose(1, 2)[:, :, None]
        if ctx.settings.halve:
            d_out /= 2
        return (None, d_stream, d_stream, d_norm, d_in, d_out, d_kernel[0], d_conv_bias[0], d_kernel[1], d_conv_bias[1],
                d_x_proj[0], d_x_proj[1], d_dt[0], d_dt[1], d_bias[0], d_bias[1], d_log[0], d_log[1],
                d_skip[0], d_skip[1])  # fmt: skip
