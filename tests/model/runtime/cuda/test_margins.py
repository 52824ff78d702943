"""The largest activations of every layer, in float32."""

from __future__ import annotations

import pytest
import torch

from model.mixer import Mixer
from model.preprocessing.recipe import Preprocess
from model.runtime.cuda.margins import Peaks, as_text, peaks
from model.runtime.pixel_model import PixelModel
from model.vim import Vim
from tests.tiny import CONFIG, tiny_vim

PIXELS = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def mixer_of(vim: Vim, layer: int) -> Mixer:
    """Return the mixer of a layer."""
    mixer = vim.layers[layer].mixer
    assert isinstance(mixer, Mixer)
    return mixer


def model() -> Vim:
    """Return the tiny model with a recipe."""
    vim = tiny_vim()
    vim.preprocess = Preprocess(CONFIG.image_size[0])
    return vim


@torch.inference_mode()
def test_the_peaks_are_those_of_the_tensors() -> None:
    """xz is in_proj's output, gated the input of out_proj, y the output of each direction before the gate."""
    vim, seen = model(), {"xz": 0.0, "gated": 0.0}

    def keep(name: str, tensor: torch.Tensor) -> None:
        seen[name] = max(seen[name], float(tensor.abs().max()))

    mixer = mixer_of(vim, 0)
    mixer.in_proj.register_forward_hook(lambda _, given, out: keep("xz", out))
    scan = mixer.scan

    def kept_scan(*inputs: torch.Tensor) -> torch.Tensor:
        gated = scan(*inputs)
        keep("gated", gated)
        return gated

    mixer.scan = kept_scan
    for image in PIXELS:
        PixelModel(vim, narrow=True).tokens(image[None])

    found = peaks(model(), PIXELS)

    assert (seen["xz"], seen["gated"]) == pytest.approx((found[0].xz, found[0].gated), rel=1e-5)
    assert 0 < found[0].y
    assert CONFIG.depth == len(found)


def test_the_model_is_left_as_it_was() -> None:
    """After the measurement the model has its scan, convolution and fused layers from before."""
    vim = model()
    vim.encoder = before = lambda tokens: tokens
    scans = [mixer_of(vim, layer).scan for layer in range(CONFIG.depth)]

    peaks(vim, PIXELS)

    assert before is vim.encoder
    assert scans == [mixer_of(vim, layer).scan for layer in range(CONFIG.depth)]


def test_overflow_is_infinite() -> None:
    """A value that is not finite in float32 leaves no headroom."""
    vim = model()
    mixer_of(vim, 1).in_proj.weight.data[0] = float("nan")

    assert float("inf") == peaks(vim, PIXELS)[1].largest


def test_the_text_names_the_layer_with_the_least() -> None:
    """The text has float16's largest value, 65,504, divided by the largest activation of each layer."""
    text = as_text([Peaks(xz=2.0), Peaks(y=655.04), Peaks(gated=65.504)])

    assert "by layer: 3.28e+04, 100, 1e+03; least 100 in layer 1" in text
    assert "" == as_text([])
