"""`load` returns a model that is ready to use, or raises an error with the reason."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model import Labels, Preprocess, VimConfig, load
from model.errors import ConfigError, LabelsError, ModelError, ScanError, WeightsError
from model.loading.load import pick_device, pick_dtype
from tests.model.loading.checkpoints import TINY, rope_state, state

STATE = state()
IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    """The tiny model as a plain state dict."""
    path = tmp_path / "tiny.pth"
    torch.save(STATE, path)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The tiny model as a model directory."""
    path = tmp_path / "tiny"
    path.mkdir()
    save_file(STATE, path / "model.safetensors")
    TINY.save(path / "config.json")
    return path


def test_a_loaded_model_is_ready(pth: Path) -> None:
    """A loaded model is in eval mode without gradients, has its metadata attached, and gives results."""
    vim = load(pth, device="cpu")

    assert not vim.training
    assert not any(p.requires_grad or p.is_meta for p in vim.parameters())
    assert vim.config == TINY
    assert vim.preprocess == Preprocess(size=32)
    assert vim.labels == Labels.numbered(5)
    assert vim.scan_choice is not None
    assert vim(IMAGES).isfinite().all()
    for name, tensor in vim.state_dict().items():
        torch.testing.assert_close(tensor, STATE[name], rtol=0, atol=0)


def test_assumptions_are_kept_and_logged(pth: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each assumption is kept on the model and logged at INFO."""
    with caplog.at_level(logging.INFO, "vim.model"):
        vim = load(pth)

    assert "divide_out = true: as in the released models" in vim.assumptions
    for assumption in vim.assumptions:
        assert f"tiny.pth: assuming {assumption}" in caplog.messages


def as_file(config: VimConfig, path: Path) -> Path:
    """Write the configuration as config.json in another directory."""
    config.save(path)
    return path


@pytest.mark.parametrize("form", ["config", "dict", "path"])
def test_a_given_configuration_wins(tmp_path: Path, pth: Path, form: str) -> None:
    """A configuration given as VimConfig, dict or path is used, and nothing is assumed."""
    config = TINY.replace(class_token="first", flip=True)
    given = {"config": config, "dict": config.to_dict(), "path": as_file(config, tmp_path / "elsewhere.json")}

    vim = load(pth, config=given[form])  # type: ignore[arg-type]

    assert vim.config == config
    assert vim.assumptions == ()


def test_the_family_decides_what_tensors_do_not_show(pth: Path, directory: Path) -> None:
    """VideoMamba has its class token first and sums both directions; a config.json that says otherwise is an error."""
    vim = load(pth, family="videomamba")
    assert ("videomamba", "first", False) == (vim.config.family, vim.config.class_token, vim.config.divide_out)
    assert "class_token = first: as in VideoMamba" in vim.assumptions

    TINY.replace(family="videomamba").save(directory / "config.json")
    assert "videomamba" == load(directory).config.family
    assert "videomamba" == load(directory, family="videomamba").config.family
    with pytest.raises(ConfigError, match=r"family 'vim' was asked for, but .*config\.json says 'videomamba'"):
        load(directory, family="vim")
    with pytest.raises(ConfigError, match="family 'resnet' is not supported; known: vim, videomamba"):
        load(pth, family="resnet")


def test_a_guessed_family_is_a_warning(pth: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where no published model has the shapes, the log warns that the family is a guess."""
    with caplog.at_level(logging.INFO, "vim.model"):
        load(pth)
        load(pth, family="vim")

    assert 1 == sum(record.levelno == logging.WARNING and "family = vim" in record.message for record in caplog.records)


def test_a_directory_brings_its_parts(directory: Path) -> None:
    """config.json, labels.json and the overrides of preprocess.json are used, with the caller's mode."""
    TINY.replace(class_token="first").save(directory / "config.json")
    (directory / "labels.json").write_text(json.dumps(["ant", "bee", "cat", "dog", "eel"]))
    (directory / "preprocess.json").write_text(json.dumps({"crop_ratio": 1.0, "mean": [0.5, 0.5, 0.5]}))

    vim = load(directory, preprocess="friendly")

    assert (vim.config.class_token, vim.labels[1], vim.assumptions) == ("first", "bee", ())
    assert vim.preprocess == Preprocess(size=32, crop_ratio=1.0, mode="friendly", mean=(0.5, 0.5, 0.5))


def test_arguments_beat_the_directory(directory: Path) -> None:
    """Labels and a recipe given by the caller override those of the directory."""
    (directory / "labels.json").write_text(json.dumps(["ant", "bee", "cat", "dog", "eel"]))
    recipe = Preprocess(size=32, crop_ratio=0.9)

    vim = load(directory, labels=["1", "2", "3", "4", "5"], preprocess=recipe)

    assert (vim.labels[0], vim.preprocess) == ("1", recipe)


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("config.json", '{"embed_dims": 16}', "unknown configuration field 'embed_dims'; did you mean 'embed_dim'"),
        ("config.json", "[]", "must hold a JSON object"),
        ("preprocess.json", "[]", "must hold a JSON object, found list"),
        ("preprocess.json", "{", "cannot read"),
        ("preprocess.json", '{"crop": 1}', "unknown preprocessing field 'crop'"),
        ("labels.json", '["one"]', "1 labels .* do not fit a head of 5 classes"),
    ],
)
def test_broken_parts_of_a_directory_are_named(directory: Path, file: str, content: str, error: str) -> None:
    """An invalid part of a directory is an error that names the file."""
    (directory / file).write_text(content)

    with pytest.raises((ConfigError, LabelsError), match=error):
        load(directory)


def test_a_directory_with_one_checkpoint_of_lightning(tmp_path: Path) -> None:
    """A directory with one .ckpt of Lightning loads: it has hyperparameters, and a prefix before every name."""
    content = {"state_dict": {f"model.{name}": tensor for name, tensor in state().items()}, "epoch": 3}
    torch.save(content | {"hyper_parameters": {"lr": 0.1}}, tmp_path / "epoch=3.ckpt")
    torch.save(state(), tmp_path.parent / "plain.pth")

    assert load(tmp_path, config=TINY).fingerprint == load(tmp_path.parent / "plain.pth", config=TINY).fingerprint


def test_a_lone_file_stands_for_itself(directory: Path) -> None:
    """If a file is given, the other files in its directory are ignored."""
    TINY.replace(class_token="first").save(directory / "config.json")

    assert load(directory / "model.safetensors").config.class_token == "middle"


def test_weights_of_a_directory(tmp_path: Path) -> None:
    """model.safetensors is preferred, else the only file of weights, safetensors before .pth; several are an error."""
    with pytest.raises(WeightsError, match="holds no weights"):
        load(tmp_path)
    torch.save(STATE, tmp_path / "a.pth")
    assert load(tmp_path).config == TINY
    torch.save(STATE, tmp_path / "b.pt")
    with pytest.raises(WeightsError, match=r"several files of weights \(a\.pth, b\.pt\): name the one"):
        load(tmp_path)
    other = state(num_classes=3)
    save_file(other, tmp_path / "c.safetensors")
    assert load(tmp_path).config.num_classes == 3
    save_file(STATE, tmp_path / "model.safetensors")
    assert load(tmp_path).config.num_classes == 5


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    """A missing path, and a configuration given in place of its directory, are errors."""
    with pytest.raises(WeightsError, match=r"absent\.pth does not exist; give a directory, a file"):
        load(tmp_path / "absent.pth")
    TINY.save(tmp_path / "config.json")
    with pytest.raises(WeightsError, match="is JSON, not weights; name its directory"):
        load(tmp_path / "config.json")


MISMATCHES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain mamba": (
        {"bimamba": "none"},
        ("missing: layers.0.mixer.A_b_log", "and 10 more", "shows bimamba none", "stock mamba_ssm"),
    ),
    "v1": ({"bimamba": "v1"}, ("missing: layers.0.mixer.D_b", "shows bimamba v1, the configuration says v2")),
    "classes": (
        {"num_classes": 7},
        (
            "2 of another shape: head.weight (expected 5x16, found 7x16)",
            "shows num_classes 7, the configuration says 5",
        ),
    ),
    "no head": ({"num_classes": 0}, ("2 missing: head.weight, head.bias", "shows num_classes 0")),
    "image size": (
        {"image_size": (48, 48)},
        (
            "pos_embed (expected 1x17x16, found 1x37x16)",
            "36 patch positions, the configuration 16 (32x32 px at stride 8)",
        ),
    ),
    "width": ({"embed_dim": 32}, ("shows embed_dim 32, the configuration says 16",)),
    "depth": ({"depth": 3}, ("unexpected: layers.2.mixer.A_log", "shows depth 3, the configuration says 2")),
    "shallow": ({"depth": 1}, ("missing: layers.1.mixer.A_log", "shows depth 1, the configuration says 2")),
    "expand": ({"expand": 1}, ("shows expand 1, the configuration says 2",)),
    "norm": ({"norm": "layer"}, ("unexpected: layers.0.norm.bias", "shows norm layer, the configuration says rms")),
    "two tokens": (
        {"class_token": "double"},
        ("missing: cls_token", "the file has 2 class tokens, the configuration 1"),
    ),
    "layer scale": ({"layer_scale": True}, ("unexpected: layers.0.mixer.gamma", "shows layer_scale True")),
    "positions": ({"pos_embed": False}, ("1 missing: pos_embed", "shows pos_embed False")),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_a_mismatch_is_a_readable_diff(tmp_path: Path, kind: str) -> None:
    """The error counts missing, unexpected and misshapen tensors and names the likely cause."""
    changes, wanted = MISMATCHES[kind]
    torch.save(state(**changes), tmp_path / "other.pth")

    with pytest.raises(WeightsError, match="does not fit the configuration") as caught:
        load(tmp_path / "other.pth", config=TINY)

    for text in wanted:
        assert text in str(caught.value)


def test_an_edited_file_is_called_so(tmp_path: Path) -> None:
    """A file with one key missing and one too many is reported as edited."""
    edited = STATE | {"extra.weight": torch.zeros(1)}
    del edited["layers.1.mixer.D"]
    torch.save(edited, tmp_path / "edited.pth")

    with pytest.raises(WeightsError, match="an incomplete or edited file") as caught:
        load(tmp_path / "edited.pth")

    assert "1 missing: layers.1.mixer.D\n" in str(caught.value)
    assert "1 unexpected: extra.weight\n" in str(caught.value)


def test_weights_of_another_model_are_called_so(tmp_path: Path) -> None:
    """Loading a ResNet says what is missing and names the file, with and without a configuration."""
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(10)}, tmp_path / "resnet.pth")

    with pytest.raises(WeightsError, match=r"resnet\.pth: this is not a Vision Mamba"):
        load(tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="likely cause: this is not a Vision Mamba"):
        load(tmp_path / "resnet.pth", config=TINY)


def test_rope_tables_follow_from_the_configuration(tmp_path: Path) -> None:
    """A file without RoPE tables loads to the same model; a file with tables of another grid is refused."""
    tensors = rope_state()
    torch.save(tensors, tmp_path / "with.pth")
    torch.save({k: v for k, v in tensors.items() if not k.startswith("rope.")}, tmp_path / "without.pth")
    config = TINY.replace(rope=True, class_token="first")

    first, second = (load(tmp_path / f"{kind}.pth", config=config, device="cpu") for kind in ("with", "without"))

    assert first.fingerprint == second.fingerprint
    torch.testing.assert_close(first(IMAGES), second(IMAGES), rtol=0, atol=0)
    with pytest.raises(WeightsError, match="rope_pretrained_grid 7"):
        load(tmp_path / "with.pth", config=config.replace(rope_pretrained_grid=7))


def test_image_size_settles_the_stride(tmp_path: Path) -> None:
    """The tensors of stride 4 at 24 px are read as such only if the image size is given."""
    torch.save(state(image_size=(24, 24), stride=4), tmp_path / "a.pth")

    assert load(tmp_path / "a.pth", image_size=24).config.stride == 4


def test_image_size_is_free_without_positions(tmp_path: Path) -> None:
    """A model without a position embedding loads at any image size."""
    torch.save(state(pos_embed=False), tmp_path / "a.pth")

    assert load(tmp_path / "a.pth", config=TINY.replace(pos_embed=False), image_size=64).config.grid == (8, 8)


def test_half_precision_keeps_what_must_be_wide(pth: Path) -> None:
    """A, D, delta biases and norms stay float32; the other weights have the requested dtype."""
    vim = load(pth, device="cpu", dtype="bfloat16")

    wide = {name.split(".", 2)[-1] for name, p in vim.named_parameters() if p.dtype == torch.float32}
    assert {"mixer.A_log", "mixer.A_b_log", "mixer.D", "mixer.D_b", "mixer.dt_proj.bias", "norm.weight"} <= wide
    assert vim.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "expected"),
    [("auto", torch.float32), ("float64", torch.float64), (torch.float16, torch.float16), ("bfloat16", torch.bfloat16)],
)
def test_dtypes_by_name_or_value(given: str | torch.dtype, expected: torch.dtype) -> None:
    """A dtype may be a name or a torch dtype, and auto is float32."""
    assert pick_dtype(given) == expected


@pytest.mark.parametrize("given", ["int8", torch.int32, "half"])
def test_other_dtypes_are_refused(given: str | torch.dtype) -> None:
    """The error for an unknown dtype lists the known ones."""
    with pytest.raises(ModelError, match="known: auto, float32, float64, bfloat16, float16"):
        pick_dtype(given)


def test_cuda_without_cuda_is_an_error_that_says_so(pth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requesting cuda without a CUDA device is an error, while auto uses the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ModelError, match="'cuda' was asked for, but there is no CUDA device here"):
        load(pth, device="cuda")
    assert pick_device("auto") == torch.device("cpu")


def test_a_gpu_beyond_the_last_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requesting cuda:3 on a machine with one GPU is an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    with pytest.raises(ModelError, match="'cuda:3' was asked for, but this machine has 1"):
        pick_device("cuda:3")


@pytest.mark.parametrize("given", ["gpu", "mps", "cpu:x"])
def test_unknown_devices_are_refused(given: str) -> None:
    """The error for an unknown device lists the known ones."""
    with pytest.raises(ModelError, match="known: auto, cpu, cuda, cuda:N"):
        pick_device(given)


def test_unknown_scans_and_modes_are_refused(pth: Path) -> None:
    """Unknown scans and modes raise the error of the module that defines them."""
    with pytest.raises(ScanError, match="unknown scan 'fast'"):
        load(pth, scan="fast")
    with pytest.raises(ConfigError, match="mode must be one of reference, friendly"):
        load(pth, preprocess="pretty")
    with pytest.raises(ConfigError, match="makes 224 px images, the model takes"):
        load(pth, preprocess=Preprocess())
