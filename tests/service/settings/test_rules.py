"""Settings of models that contradict each other, and the way of the settings to other processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import SettingsError
from service.settings import Settings

ADMIN = "k" * 20


def refusal(**environ: str) -> str:
    """The message of the error for this environment."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    return str(caught.value)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"VIM_MODEL": "demo", "VIM_MODELS": "a=demo"}, "VIM_MODEL and VIM_MODELS"),
        ({"VIM_MODEL": "x", "VIM_MODEL_REPOSITORY": "/m"}, "VIM_MODEL and VIM_MODEL_REPOSITORY"),
        ({"VIM_MODELS": "a=demo", "VIM_MODEL_REPOSITORY": "/m"}, "VIM_MODELS and VIM_MODEL_REPOSITORY"),
        (
            {"VIM_MODEL": "x", "VIM_MODELS": "a=demo", "VIM_MODEL_REPOSITORY": "/m"},
            "VIM_MODEL and VIM_MODELS and VIM_MODEL_REPOSITORY",
        ),
    ],
)
def test_models_come_from_one_setting(environ: dict[str, str], named: str) -> None:
    """Two settings that say what to serve are refused, also if one of them has the value of the default."""
    assert f"{named} each say what to serve: set only one of them" == refusal(**environ)


@pytest.mark.parametrize("several", [{"VIM_MODELS": "a=demo"}, {"VIM_MODEL_REPOSITORY": "/m"}])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VIM_MODEL_NAME", "mine"),
        ("VIM_MODEL_FAMILY", "vim"),
        ("VIM_WEIGHTS", "model_ema"),
        ("VIM_IMAGE_SIZE", "224"),
        ("VIM_LABELS", "none"),
    ],
)
def test_settings_of_one_model_are_refused_with_several(several: dict[str, str], name: str, value: str) -> None:
    """What describes one model has no meaning for several."""
    assert f"{name} cannot be used with {next(iter(several))}: it is for VIM_MODEL alone" == refusal(
        **several, **{name: value}
    )
    assert Settings.load({name: value})


def test_defaults_are_allowed_with_several_models() -> None:
    """An empty variable, and the default of VIM_WEIGHTS, say nothing."""
    settings = Settings.load({"VIM_MODELS": "a=demo", "VIM_MODEL": "", "VIM_LABELS": "", "VIM_WEIGHTS": "model"})

    assert "a=demo" == settings.models


def test_arguments_are_checked_as_the_environment_is() -> None:
    """`Settings(...)` refuses the same contradictions."""
    with pytest.raises(ValidationError, match="set only one of them"):
        Settings(model="demo", models="a=demo")


def test_control_over_http_needs_a_key() -> None:
    """VIM_MODEL_CONTROL=explicit is refused without keys of administrators, with the settings that give them."""
    message = "VIM_MODEL_CONTROL=explicit needs keys of administrators: set VIM_ADMIN_KEYS or VIM_ADMIN_KEYS_FILE"

    assert message == refusal(VIM_MODEL_CONTROL="explicit")
    assert message == refusal(VIM_MODEL_CONTROL="Explicit", VIM_API_KEYS=ADMIN)
    assert "explicit" == Settings.load({"VIM_MODEL_CONTROL": "Explicit", "VIM_ADMIN_KEYS": ADMIN}).model_control
    assert Settings.load({"VIM_MODEL_CONTROL": "explicit", "VIM_ADMIN_KEYS_FILE": "/keys"}).admin_keys == ()


@pytest.mark.parametrize(
    "environ",
    [
        {"VIM_MODELS": "a=demo,b=vim-tiny", "VIM_MODEL_CONTROL": "explicit", "VIM_ADMIN_KEYS": ADMIN},
        {"VIM_MODEL_REPOSITORY": "~/models", "VIM_MODEL_POLL_S": "5"},
        {"VIM_MODEL": "x", "VIM_LABELS": "none"},
    ],
)
def test_settings_reach_other_processes(environ: dict[str, str]) -> None:
    """As JSON every field is written, and read again."""
    settings = Settings.load(environ)

    assert settings == Settings.model_validate_json(settings.model_dump_json())
    assert settings.model_repository in (None, Path("~/models").expanduser())
