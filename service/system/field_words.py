"""A field of a pydantic model in words: the values that it accepts, and its default."""

from __future__ import annotations

from typing import get_args

from annotated_types import Ge, Le
from pydantic.fields import FieldInfo


def shown(value: object) -> str | None:
    """A default as the environment would have it; None if it is unset."""
    if value in (None, "", ()):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def accepted(info: FieldInfo) -> str:
    """In words: a choice, a switch, a text, or an integer with bounds."""
    if get_args(info.annotation) and int not in get_args(info.annotation):
        return f"one of {', '.join(get_args(info.annotation))}"
    if info.annotation is bool:
        return "true or false"
    if info.annotation is str:
        return "a text"
    lowest = next(bound.ge for bound in info.metadata if isinstance(bound, Ge))
    highest = next((bound.le for bound in info.metadata if isinstance(bound, Le)), None)
    return f"an integer, at least {lowest}" if highest is None else f"an integer between {lowest} and {highest}"
