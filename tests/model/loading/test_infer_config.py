"""The architecture is inferred from the tensors, and what they do not show is assumed and reported."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import VimConfig
from model.errors import WeightsError
from model.loading.infer_config import Hints, Size, infer
from tests.golden import SHARED, needs_shared
from tests.model.loading.checkpoints import TINY, rope_state, state

NO_HINTS = Hints()
# What no tensor shows; the rest must be inferred exactly.
UNSEEN = ("pool", "divide_out", "rope_residual", "bidirectional_layers", "flip", "norm_epsilon")
REFUSED = {"bimamba_unknown", "slow_path_v2"}


def golden(name: str, key: str) -> dict[str, Any]:
    """An index of the golden data, or nothing where ../shared is absent (the tests then skip)."""
    path = SHARED / "golden" / name
    found: dict[str, Any] = json.loads(path.read_text())[key] if path.is_file() else {"absent": {}}
    return found


def skeleton(keys_shapes: list[tuple[str, list[int]]]) -> dict[str, Tensor]:
    """Return tensors with names and shapes only."""
    return {name: torch.empty(shape, device="meta") for name, shape in keys_shapes}


def blind(config: VimConfig, rope: bool) -> VimConfig:
    """Return the configuration with every field that tensors do not show set to its assumed value."""
    assumed: dict[str, Any] = {name: getattr(VimConfig(), name) for name in UNSEEN}
    assumed |= {"rope_residual": rope, "divide_out": not rope or config.bimamba != "v2"}
    if config.class_token == "none":
        return config.replace(**(assumed | {"pool": "mean"}))
    one = "first" if rope else "middle"
    return config.replace(**assumed, class_token=one if config.num_class_tokens == 1 else "double")


@needs_shared
@pytest.mark.parametrize("name", sorted(golden("small/index.json", "cases")))
def test_golden_cases_are_inferred(name: str) -> None:
    """Every visible field is inferred from names, shapes and the image size, for every option of the reference."""
    case = golden("small/index.json", "cases")[name]
    kwargs = case["kwargs"]
    if name in REFUSED:  # their tensors are those of other cases
        kwargs = kwargs | {"bimamba_type": "none" if "none" in case["checkpoint"] else "v2", "ssm_cfg": None}
    true = VimConfig.from_reference(**kwargs)

    found, assumptions = infer(skeleton(case["state_dict"]), NO_HINTS, true.image_size)

    assert found == blind(true, true.rope)
    assert len(assumptions) >= 3


@needs_shared
@pytest.mark.parametrize("name", sorted(golden("manifest.json", "models")))
def test_released_models_are_inferred_whole(name: str) -> None:
    """Without hints or an image size the released configurations are inferred."""
    model = golden("manifest.json", "models")[name]

    found, _ = infer(skeleton(model["state_dict"]), NO_HINTS)

    assert found == VimConfig.from_reference(**model["resolved_kwargs"])


def positions(count: int, patch: int, **changes: Any) -> dict[str, Tensor]:
    """Return the tensors of a model with this number of patch positions."""
    tensors = state(patch_size=patch, stride=patch, image_size=(patch, patch), **changes)
    return tensors | {"pos_embed": torch.zeros(1, count + 1, 16)}


@pytest.mark.parametrize(
    ("count", "patch", "given", "size", "stride"),
    [
        (196, 16, None, (224, 224), 16),
        (729, 16, None, (224, 224), 8),
        (784, 8, None, (224, 224), 8),
        (324, 16, None, (224, 224), 12),  # 224 px unless image_size says otherwise
        (576, 16, None, (224, 224), 9),  # the assumption names 384 px as the other reading
        (576, 16, (224, 224), (384, 384), 16),  # fine-tuned at 384, asked for at 224
        (361, 16, None, (224, 224), 11),  # no usual size has 19x19
        (16, 16, None, (64, 64), 16),  # none does: no overlap
        (576, 16, (384, 384), (384, 384), 16),
        (49, 16, (64, 64), (64, 64), 8),
        (25, 16, (64, 64), (64, 64), 12),
        (24, 16, (64, 96), (64, 96), 16),
        (16, 16, (70, 70), (70, 70), 16),
        (196, 16, (384, 384), (224, 224), 16),  # trained at 224, asked for at 384
        (196, 16, (192, 192), (224, 224), 16),  # stride 13 would fit 192 px, but nobody trains that
        (729, 16, (384, 384), (224, 224), 8),
    ],
)
def test_stride_and_size_from_positions(count: int, patch: int, given: Size | None, size: Size, stride: int) -> None:
    """Stride follows from the number of positions and a square 224 px input, unless the image size says otherwise."""
    found, _ = infer(positions(count, patch), NO_HINTS, given)

    assert (found.image_size, found.stride) == (size, stride)


def test_what_the_image_size_settles_is_no_assumption() -> None:
    """If only one stride fits the given size nothing is assumed; if others fit too they are named."""
    _, certain = infer(positions(16, 16), NO_HINTS, (64, 64))
    _, unsure = infer(positions(25, 16), NO_HINTS, (64, 64))

    assert not any("stride" in text for text in certain)
    assert "stride = 12, image_size = 64x64 px: 25 patch positions; stride 11 or stride 10 or 80x80" in unsure[0]


def test_a_table_that_fits_no_square_needs_the_image_size() -> None:
    """24 positions may be 4x6 or 3x8, so the image size must be given."""
    with pytest.raises(WeightsError, match="24 patch positions fit no square image: give image_size"):
        infer(positions(24, 16), NO_HINTS)


@pytest.mark.parametrize(("given", "expected"), [(None, (224, 224)), ((48, 64), (48, 64))])
def test_without_positions_the_size_is_free(given: Size | None, expected: Size) -> None:
    """Without a position embedding the stride is the patch size, and any image size is accepted."""
    found, assumptions = infer(state(pos_embed=False), NO_HINTS, given)

    assert (found.image_size, found.stride) == (expected, 8)
    assert "without a position embedding" in assumptions[0]


def test_rope_buffers_mean_the_older_model() -> None:
    """A RoPE table implies class token first, RoPE on the residual, no halving, and the grid of the table."""
    found, assumptions = infer(rope_state(), NO_HINTS)

    expected = TINY.replace(rope=True, class_token="first", rope_residual=True, divide_out=False)
    assert found == expected
    assert "class_token = first: as in the older RoPE model, vim-tiny-73p1" in assumptions


@pytest.mark.parametrize("grid", [7, 14, 24])
def test_the_rope_table_shows_the_grid_it_was_trained_on(grid: int) -> None:
    """The reference's pt_hw_seq_len is recovered from the angles of the table."""
    tensors = rope_state(rope_pretrained_grid=grid)
    halved = {name: tensor.bfloat16().float() for name, tensor in tensors.items()}

    assert infer(tensors, NO_HINTS)[0].rope_pretrained_grid == grid
    assert infer(halved, NO_HINTS)[0].rope_pretrained_grid == grid


@pytest.mark.parametrize("expand", [1, 1.5, 2, 2.3, 0.7])
@pytest.mark.parametrize("width", [16, 40, 44])
def test_expand_gives_the_inner_width_back(expand: float, width: int) -> None:
    """`int(expand * width)` is exact, also where the quotient rounds down."""
    inner = int(expand * width)

    found, _ = infer(state(expand=expand, embed_dim=width), NO_HINTS)

    assert found.d_inner == inner


FACTORY = "vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"model": FACTORY, "input_size": 224}, Hints(FACTORY, 224)),
        ({"model": None, "input_size": "224"}, Hints()),
        ({"epochs": 300}, Hints()),
        ({"input_size": -1}, Hints()),
    ],
)
def test_hints_come_from_the_arguments_of_a_run(args: dict[str, Any], expected: Hints) -> None:
    """Only useful arguments of the right type become hints."""
    assert Hints.from_args(args) == expected


@pytest.mark.parametrize(
    ("name", "token"),
    [
        (FACTORY, "middle"),
        ("vim_base_with_middle_cls_token_div2", "middle"),
        ("vim_small_first_cls", "first"),
        ("vim_tiny_with_cls_token", None),
    ],
)
def test_factory_names_say_where_the_token_is(name: str, token: str | None) -> None:
    """The class token is middle or first if the factory's name says so."""
    assert Hints(name).class_token == token


def test_hints_settle_what_tensors_leave_open() -> None:
    """A name with a middle token and div2 overrides the older model's values, and is given as the reason."""
    found, assumptions = infer(rope_state(), Hints("vim_rope_midclstok_div2"))

    assert (found.class_token, found.divide_out) == ("middle", True)
    assert "class_token = middle: from the model's name in the checkpoint's args" in assumptions


def test_hints_never_override_a_tensor() -> None:
    """The name says middle token, stride 8 and 224 px, but the tensors decide."""
    found, _ = infer(state(class_token="none", pool="mean"), Hints(FACTORY, 224))

    assert (found.class_token, found.stride, found.image_size) == ("none", 8, (32, 32))
    assert infer(positions(16, 16), Hints(FACTORY, 224))[0].image_size == (64, 64)


def test_a_hinted_size_beats_the_usual_one() -> None:
    """For a model fine-tuned at 384 px, 24x24 positions are not read as stride 9 at 224 px."""
    assert infer(positions(576, 16), Hints("", 384))[0].image_size == (384, 384)


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "layers.0.mixer.A_log", "layers.0.mixer.conv1d.weight"])
def test_other_models_are_named_as_such(name: str) -> None:
    """For another architecture the error says which key is missing and which keys exist."""
    tensors = state()
    del tensors[name]

    with pytest.raises(WeightsError, match=r"no Vision Mamba.*no tensor '.*cls_token"):
        infer(tensors, NO_HINTS)


def test_odd_shapes_are_errors_of_ours() -> None:
    """A tensor with a known name and the wrong number of axes raises WeightsError."""
    with pytest.raises(WeightsError, match=r"layers\.0\.mixer\.A_log has shape \(4,\): expected 2 axes"):
        infer(state() | {"layers.0.mixer.A_log": torch.zeros(4)}, NO_HINTS)
    with pytest.raises(WeightsError, match="8x4 px: only square ones"):
        infer(state() | {"patch_embed.proj.weight": torch.zeros(16, 3, 8, 4)}, NO_HINTS)
